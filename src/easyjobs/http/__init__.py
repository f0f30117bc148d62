"""The manager's HTTP side: routes, access, problems and OpenAPI."""
