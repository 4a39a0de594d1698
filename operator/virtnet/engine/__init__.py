"""DRIVES: the fast loop, when a full pass runs, transactions and the fight detector. It knows no Kubernetes."""
