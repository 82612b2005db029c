"""What the server tells of itself in numbers: their names, where they come from, and how they are written."""
