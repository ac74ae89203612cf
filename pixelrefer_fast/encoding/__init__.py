"""From pixels to object tokens: packed patches, features, pooling, infusion, projection; and encoded objects in files."""
