"""What libvirt and QEMU themselves say: libvirt's schema, its own reading of a domain, and a QEMU that is started."""
