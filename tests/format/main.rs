//! What the formats say, held against files and against a second reader.

mod second_reader;
