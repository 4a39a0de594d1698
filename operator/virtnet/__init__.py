"""virtio-network-operator: keeps the virtio network path of virtual machines as a policy says."""

__version__ = "0.1.0"
