//! The console: waits, commands, floods of output, recordings, and simulated guests.

mod commands;
mod ends;
mod floods;
mod real_shells;
mod recording;
mod shell;
mod simulated_guest;
mod stdio;
mod waits;
