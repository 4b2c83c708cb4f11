"""The command line `abmll`: one module for each group of commands."""
