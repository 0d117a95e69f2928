//! What the formats say, held against files and against a second reader.

mod created;
mod samples;
mod second_reader;
#[path = "../support/mod.rs"]
mod support;
