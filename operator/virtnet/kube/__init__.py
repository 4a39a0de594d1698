"""Talks the Kubernetes API: its models, its CRDs and its documents. It never touches the machine."""
