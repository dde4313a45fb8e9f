//! x
mod clock;mod facts;mod guardian;mod probe;mod process;pub mod run_dir;mod sys;
