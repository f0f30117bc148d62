"""How programs put jobs into a message broker, from which a manager takes them. Nothing of a manager is imported here."""
