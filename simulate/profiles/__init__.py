"""Mass and light profiles as pure torch functions, named and parametrised as in lenstronomy."""
