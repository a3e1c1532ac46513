//! Import path `server`, the launcher, the protocol fronts and the binary
