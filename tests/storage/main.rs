//! The storage contract over every implementor, and the simulator the crash tests stand on.

mod contract;
mod simulation;
