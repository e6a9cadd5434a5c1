//! Image configs (image-spec 1.1, "Image Configuration").
