"""The controller's own code against a strict fake of the API server."""
