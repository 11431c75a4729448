//! Programs from templates.

use std::sync::LazyLock;

use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value};
use serde::Serialize;

static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    for (name, source) in [
        ("activation", include_str!("activation.wgsl")),
        ("argmax", include_str!("argmax.wgsl")),
        ("attention", include_str!("attention.wgsl")),
        ("epilogue", include_str!("epilogue.wgsl")),
        ("half", include_str!("half.wgsl")),
        ("heads", include_str!("heads.wgsl")),
        ("merge", include_str!("merge.wgsl")),
        ("norm", include_str!("norm.wgsl")),
        ("product_rows", include_str!("product_rows.wgsl")),
        ("product_tile", include_str!("product_tile.wgsl")),
        ("softcap", include_str!("softcap.wgsl")),
        ("tree_sum", include_str!("tree_sum.wgsl")),
        ("weights", include_str!("weights.wgsl")),
    ] {
        // The templates are part of the program, and every one of them is rendered by tests.
        environment.add_template(name, source).unwrap_or_else(|error| panic!("template {name}: {error}"));
    }
    environment
});

/// The program of a template with these values.
pub(super) fn render(name: &str, values: impl Serialize) -> String {
    let rendered = TEMPLATES.get_template(name).and_then(|template| template.render(Value::from(Serde(values))));
    rendered.unwrap_or_else(|error| panic!("template {name}: {error:#}"))
}

/// Floats as they are written in WGSL, with all of their bits.
pub(super) fn literal(value: f32) -> String {
    // An exponent makes it a float, whatever the digits.
    format!("{value:e}f")
}
