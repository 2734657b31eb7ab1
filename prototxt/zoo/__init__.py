"""Networks this project ships; :mod:`prototxt.zoo.generate` writes their files."""
