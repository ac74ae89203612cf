"""From pixels to object tokens: patches, features, pooling, infusion, projection; and encoded objects in files."""
