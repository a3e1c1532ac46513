//! Rewards for problems of mathematics and physics, all from 0 to 1.

use std::collections::HashSet;
use std::sync::LazyLock;

use regex::Regex;

use super::answers::closing_brace;
use super::last_letters;

/// Rewrites answers so that equal ones have equal texts, in this order.
static REWRITES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let rules: &[(&str, &str)] = &[
        (r"\\left\s*|\\right\s*", ""),
        (r"\\(?:leqslant|geqslant|leq|le|geq|ge|neq)\b\s*", ""),
        (r"\\(?:qquad|quad|,|;|!)\s*", ""),
        (r"\\d?frac\{([^}]*)\}\{([^}]*)\}", "($1)/($2)"),
        (r"\\sqrt\{([^}]*)\}", "sqrt($1)"),
        (r"\\(?:text|mathrm|mathbf|mathit)\{([^}]*)\}", "$1"),
        (r"\\", ""),
        (r"\+infty", "infty"),
        (r"_\{([^}]*)\}", "_$1"),
        (r"\^\{([^}]*)\}", "^$1"),
        (
            r"\b(?:cm|mm|km|nm|um|kg|mg|Hz|kHz|MHz|GHz|mol|Pa|kPa|MPa|eV|keV|MeV|GeV|cal|kcal|cd|lm|lx|Wb|Bq|Gy|Sv)\b",
            "",
        ),
        (r"([0-9)\]])\s*(?:m/s2|m/s|km/h|kg/m3|N/m|J/mol|rad|sr|[NVWAKCTFHLJmgs])\b", "$1"),
        (r"°|度|米|千克|克|秒|摩尔|帕|瓦|伏|安|赫兹|牛|焦", ""),
        (r"(\d+):(\d+)", "$1/$2"),
        (r"\s+", ""),
        (r"^(-?)(\d+)/(\d+)$", "$1($2)/($3)"),
        (r",+", ","),
    ];
    rules.iter().filter_map(|(pattern, with)| Some((Regex::new(pattern).ok()?, *with))).collect()
});

/// Words that lead from one step to the next.
static STEPS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let words = r"(?i)第[一二三四五六七八九十\d]+步|Step\s*\d+|首先|其次|然后|最后|因此|所以|First|Then|Finally|Therefore|Hence";
    Regex::new(words).ok()
});

/// Words that lead to the answer.
static CONCLUSION: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?is)(所以|因此|答案|故|得|Thus|Therefore|Answer).*\\boxed").ok());

/// 1 for the right answer in `\boxed{}`, less for a number that is close; with several answers, the share of them that
/// was found.
pub(super) fn accuracy(completion: &str, truth: &str, is_multiple: bool) -> f64 {
    let given: Vec<String> = boxed(completion).iter().map(|answer| normalized(answer)).collect();
    let truths: Vec<String> = parts(truth).iter().map(|part| normalized(part)).collect();
    let (Some(last), Some(first)) = (given.last(), truths.first()) else { return 0.0 };
    if is_multiple {
        let found = truths.iter().filter(|truth| given.iter().any(|answer| is_match(answer, truth))).count();
        return found as f64 / truths.len() as f64;
    }
    if is_match(last, first) { 1.0 } else { 0.99 * closeness(last, first) }
}

/// For an answer in `\boxed{}` 0.4, at the end 0.3 and only one 0.3.
pub(super) fn format(completion: &str) -> f64 {
    let answers = boxed(completion);
    if answers.is_empty() {
        return 0.0;
    }
    let mut score: f64 = 0.4;
    let rest = completion.rfind("\\boxed{").and_then(|place| completion.get(place..)).unwrap_or_default();
    if rest.chars().count() < 200 {
        score += 0.3;
    }
    match answers.iter().map(|answer| normalized(answer)).collect::<HashSet<_>>().len() {
        1 => score += 0.3,
        2 => {}
        _ => score -= 0.3,
    }
    score.clamp(0.0, 1.0)
}

/// 0.4 of how well steps can be followed, 0.3 of how fitting the length is, 0.3 of how little is repeated.
pub(super) fn quality(completion: &str) -> f64 {
    0.4 * reasoning(completion) + 0.3 * length(completion.chars().count() as f64) + 0.3 * variety(completion)
}

/// What each `\boxed{…}` holds.
fn boxed(text: &str) -> Vec<&str> {
    const BOXED: &str = "\\boxed{";
    let mut answers = Vec::new();
    let mut rest = text;
    while let Some(inside) = rest.find(BOXED).and_then(|place| rest.get(place + BOXED.len()..)) {
        let Some(end) = closing_brace(inside, true) else { break };
        answers.extend(inside.get(..end));
        rest = inside.get(end + 1..).unwrap_or_default();
    }
    answers
}

/// Answers between commas that are in no bracket.
fn parts(truth: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let is_between = |letter: char| {
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
    };
    truth.split(is_between).map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn normalized(answer: &str) -> String {
    let narrow = |letter: char| match letter {
        '０'..='９' | 'Ａ'..='Ｚ' | 'ａ'..='ｚ' => char::from_u32(u32::from(letter) - 0xfee0).unwrap_or(letter),
        '，' => ',',
        '。' => '.',
        '（' => '(',
        '）' => ')',
        '：' => ':',
        '；' => ';',
        other => other,
    };
    let mut text: String = answer.chars().filter(|letter| *letter != '$').map(narrow).collect();
    for (pattern, with) in REWRITES.iter() {
        text = pattern.replace_all(&text, *with).into_owned();
    }
    text.trim_matches([',', '.']).trim().to_owned()
}

fn numbers(one: &str, other: &str) -> Option<(f64, f64)> {
    Some((one.parse().ok()?, other.parse().ok()?))
}

fn is_match(given: &str, truth: &str) -> bool {
    given == truth
        || numbers(given, truth).is_some_and(|(given, truth): (f64, f64)| {
            let distance = (given - truth).abs();
            distance < 1e-4 || if truth == 0.0 { given.abs() < 0.01 } else { distance / truth.abs() < 0.01 }
        })
}

/// From 0 to 1, how close two numbers are; 0 for anything else.
fn closeness(given: &str, truth: &str) -> f64 {
    match numbers(given, truth) {
        Some((given, truth)) if truth != 0.0 => (-5.0 * (given - truth).abs() / truth.abs()).exp(),
        _ => 0.0,
    }
}

fn reasoning(text: &str) -> f64 {
    let bytes = text.as_bytes();
    let is_single = |place: &usize| {
        let before = place.checked_sub(1).and_then(|place| bytes.get(place));
        !before.is_some_and(|byte| b"=!<>".contains(byte)) && bytes.get(place + 1) != Some(&b'=')
    };
    let equations = text.match_indices('=').map(|(place, _)| place).filter(is_single).count();
    let operators = text.chars().filter(|letter| "+-*/^".contains(*letter)).count()
        + text.matches("\\frac").count()
        + text.matches("\\sqrt").count();
    let has = |pattern: &Option<Regex>, text: &str| pattern.as_ref().is_some_and(|pattern| pattern.is_match(text));
    let signs = [equations >= 3, operators >= 5, has(&STEPS, text), has(&CONCLUSION, last_letters(text, 500))];
    0.25 * signs.into_iter().filter(|sign| *sign).count() as f64
}

/// Best from 300 to 1500 letters.
fn length(letters: f64) -> f64 {
    match letters {
        few if few < 100.0 => few / 100.0 * 0.3,
        some if some < 300.0 => 0.3 + (some - 100.0) / 200.0 * 0.7,
        fitting if fitting <= 1500.0 => 1.0,
        many if many <= 3000.0 => 0.5 + 0.5 * ((many - 1500.0) / 1500.0 * std::f64::consts::FRAC_PI_2).cos(),
        more => 0.5 * (1.0 - ((more - 3000.0) / 3000.0).min(1.0) * 0.5),
    }
}

/// How few of its pieces of 50 letters and of 4 words come again.
fn variety(text: &str) -> f64 {
    const PIECE: usize = 50;
    let letters: Vec<char> = text.chars().collect();
    if letters.len() < 100 {
        return 1.0;
    }
    let share = |different: usize, all: usize| if all == 0 { 1.0 } else { different as f64 / all as f64 };
    let pieces: Vec<&[char]> = letters.windows(PIECE).take(letters.len() - PIECE).step_by(PIECE / 2).collect();
    let words: Vec<&str> = text.split_whitespace().collect();
    let fours: Vec<&[&str]> = words.windows(4).collect();
    let of_pieces = share(pieces.iter().collect::<HashSet<_>>().len(), pieces.len());
    let of_fours = share(fours.iter().collect::<HashSet<_>>().len(), fours.len());
    f64::midpoint(of_pieces, of_fours)
}
