"""Tests on a stock kernel with vhost_net, bonds and vlans, in a virtual machine; `python -m tests.lab` boots it."""
