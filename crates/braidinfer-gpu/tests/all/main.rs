//! Tests of kernels on a device, in one program, so that they share the device.

mod attention;
mod device;
mod heads;
mod norm;
mod product;

#[path = "../support/mod.rs"]
mod support;
