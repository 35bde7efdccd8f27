"""Echo noise and k-nearest-neighbour information estimators for PyTorch."""
