"""The tests of virtio-network-operator; each folder needs a little more of a machine than the one before it."""
