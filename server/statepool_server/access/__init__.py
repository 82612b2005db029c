"""Who may call, and what files say of that."""
