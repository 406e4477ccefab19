//! The text of a configuration, encoded and split.
