//! Finding answers in a text and comparing them.

/// What the last `\boxed{…}` holds, with braces inside it in pairs; `None` when it is empty or does not end.
pub(super) fn last_boxed(text: &str) -> Option<&str> {
    const BOXED: &str = "\\boxed{";
    let inside = text.get(text.rfind(BOXED)? + BOXED.len()..)?;
    let end = closing_brace(inside, false)?;
    inside.get(..end).map(str::trim).filter(|answer| !answer.is_empty())
}

/// Where the brace is that ends a text which begins inside one. With `escapes`, `\{` and `\}` are no braces.
pub(super) fn closing_brace(inside: &str, escapes: bool) -> Option<usize> {
    let mut depth = 1_usize;
    let mut is_escaped = false;
    for (place, letter) in inside.char_indices() {
        let counts = !(escapes && std::mem::take(&mut is_escaped));
        match letter {
            '\\' if counts => is_escaped = true,
            '{' if counts => depth += 1,
            '}' if counts => depth -= 1,
            _ => {}
        }
        if !escapes {
            is_escaped = false;
        }
        if depth == 0 {
            return Some(place);
        }
    }
    None
}

/// The number behind the last `####` that one follows.
pub(super) fn last_after_hashes(text: &str) -> Option<&str> {
    let is_of_number = |letter: char| letter.is_ascii_digit() || letter.is_whitespace() || "-,.".contains(letter);
    let numbers = text.match_indices("####").filter_map(|(at, hashes)| {
        let rest = text.get(at + hashes.len()..)?;
        let end = rest.find(|letter| !is_of_number(letter)).unwrap_or(rest.len());
        rest.get(..end).map(str::trim).filter(|number| !number.is_empty())
    });
    numbers.last()
}

/// Whether something, or nothing, is between two marks.
pub(super) fn is_between(text: &str, open: &str, close: &str) -> bool {
    text.split_once(open).is_some_and(|(_, rest)| rest.contains(close))
}

/// Whether two texts say the same number; `None` when one of them says none.
pub(super) fn same_number(one: &str, other: &str) -> Option<bool> {
    let (one, other): (f64, f64) = (one.trim().parse().ok()?, other.trim().parse().ok()?);
    Some((one - other).abs() < 1e-5)
}

/// What is compared of a solution: what stands behind `# Answer`, and of that what the last `\boxed{…}` holds.
pub(super) fn boxed_in_last(text: &str) -> String {
    let answer = text.split("# Answer").nth(1).unwrap_or(text).trim();
    last_boxed(answer).unwrap_or(answer).to_owned()
}

/// Whether two texts of LaTeX say the same: the same text without brackets and braces, or the same number.
///
/// Formulas with variables are compared as texts; there is no computer algebra here.
pub(super) fn same_mathematics(one: &str, other: &str) -> bool {
    let (clean_one, clean_other) = (cleaned(one), cleaned(other));
    if clean_one == clean_other {
        return true;
    }
    match (value_of(one), value_of(other)) {
        (Some(one), Some(other)) => (one - other).abs() <= 1e-9 * one.abs().max(other.abs()).max(1.0),
        _ => false,
    }
}

fn cleaned(latex: &str) -> String {
    let mut text = latex.to_owned();
    for bracket in ["\\(", "\\)", "\\[", "\\]"] {
        text = text.replace(bracket, "");
    }
    text.replace("}}", "}").replace(['{', '}'], "").trim().to_owned()
}

/// The value of a number, a fraction `a/b` or `\frac{a}{b}`, perhaps with a sign, in dollars or in percent signs.
fn value_of(latex: &str) -> Option<f64> {
    let mut text = cleaned_of_space(latex);
    for noise in ["\\left", "\\right", "\\!", "\\,", "\\$", "$", "\\%", "%", "\\displaystyle"] {
        text = text.replace(noise, "");
    }
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest.to_owned()),
        None => (1.0, text.strip_prefix('+').unwrap_or(&text).to_owned()),
    };
    let number = |text: &str| -> Option<f64> {
        let plain = text.replace(',', "");
        let is_plain = plain.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if is_plain { plain.parse().ok() } else { None }
    };
    let fraction = |above: &str, below: &str| Some(number(above)? / number(below).filter(|below| *below != 0.0)?);
    let value = if let Some((above, below)) = text.split_once('/') {
        fraction(above, below)?
    } else {
        let frac = ["\\dfrac", "\\tfrac", "\\frac"].into_iter().find_map(|name| text.strip_prefix(name));
        match frac {
            Some(rest) if rest.starts_with('{') => {
                let (above, rest) = braced(rest)?;
                let (below, rest) = braced(rest)?;
                if !rest.is_empty() {
                    return None;
                }
                fraction(above, below)?
            }
            Some(rest) if rest.len() == 2 && rest.is_ascii() => fraction(rest.get(..1)?, rest.get(1..)?)?,
            _ => number(&text)?,
        }
    };
    Some(sign * value)
}

fn cleaned_of_space(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_whitespace()).collect()
}

/// What the first pair of braces holds, and what follows it.
fn braced(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix('{')?;
    let end = closing_brace(inside, false)?;
    Some((inside.get(..end)?, inside.get(end + 1..)?))
}
