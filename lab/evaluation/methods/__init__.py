"""The methods that are compared: one small file a method, all behind `contract.Method`."""
