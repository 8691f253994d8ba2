//! Properties of the plan, over random clusters and random kernels, and named examples of what must be there.

mod examples;
mod flat;
mod model;
mod properties;
mod world;
