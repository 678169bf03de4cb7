"""The pods a person knows: adding, importing, showing and forgetting them, and commands and files for them."""
