"""Who asks: principals, the keys that prove them, and what each tenant may use."""
