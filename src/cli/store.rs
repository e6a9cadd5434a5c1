//! `larder store info|verify|gc`
