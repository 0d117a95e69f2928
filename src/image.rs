//! One image of any format.
