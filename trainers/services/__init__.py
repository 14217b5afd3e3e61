"""What speaks to a service that trains or answers."""
