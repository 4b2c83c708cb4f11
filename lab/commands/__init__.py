"""Commands of the laboratory: abmll meta-train and abmll evaluate."""
