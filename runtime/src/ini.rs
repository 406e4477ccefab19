//! INI text to (section, key, value), and typed reading of keys.

/// A value as a message shows it: numbers as they are, other text in quotes, long text cut.
pub(crate) fn shown(value: &str) -> String {
    if value.is_empty() {
        return "nothing".to_owned();
    }
    let cut: String = value.chars().take(60).collect();
    let dots = if cut.len() < value.len() { "..." } else { "" };
    if value.parse::<f64>().is_ok() { format!("{cut}{dots}") } else { format!("{cut:?}{dots}") }
}

/// `a, b or c`.
pub(crate) fn alternatives(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}
