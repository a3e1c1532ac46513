//! The one unsafe door to libtorch: what tch lacks, behind safe types
