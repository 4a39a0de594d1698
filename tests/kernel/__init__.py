"""Tests against the real kernel, in private network namespaces. The oracles are ethtool, ip and bridge."""
