"""What is compared: one small file a method, all behind `contract.Method`."""
