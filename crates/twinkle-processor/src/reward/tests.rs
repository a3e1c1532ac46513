use serde_json::{Map, json};

use super::*;

/// In thousandths.
fn reward(name: &str, answer: &str, user_data: &Value) -> i64 {
    let reward = Reward::named(name, &mut Arguments::new("x", Map::new())).unwrap();
    let trajectory = json!({
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}],
        "user_data": user_data
    });
    let truths = [trajectory];
    (reward.rewards(&truths, &truths).unwrap()[0] * 1000.0).round() as i64
}

#[test]
fn a_number_in_a_box_or_behind_hashes_is_right_or_not() {
    let gsm = |answer: &str| reward("GSM8KAccuracyReward", answer, &json!([["ground_truth", "1234"]]));
    for (answer, expected) in [
        ("so \\boxed{1,234}", 1000),
        ("so \\boxed{1234.0}", 1000),
        ("\\boxed{1} no, \\boxed{1234}", 1000),
        ("#### 1 234", 1000),
        ("#### 5\n#### 1234\n", 1000),
        ("\\boxed{\\text{1234}}", 0),
        ("1234", 0),
        ("\\boxed{1234", 0),
        ("", 0),
    ] {
        assert_eq!(gsm(answer), expected, "{answer}");
    }
    assert_eq!(gsm(&format!("\\boxed{{1234}}{}", " ".repeat(500))), 0, "only the end counts");
    assert_eq!(reward("GSM8KAccuracyReward", "\\boxed{1}", &json!([])), 0);
    assert_eq!(reward("GSM8KFormatReward", "\\boxed{x}", &json!([])), 1000);
    assert_eq!(reward("GSM8KFormatReward", "\\boxed{} ####", &json!([])), 0);
}

#[test]
fn thoughts_and_an_answer_have_their_tags() {
    let format = |answer: &str| reward("FormatReward", answer, &json!([]));
    assert_eq!(format("<think>a\nb</think><answer>c</answer>"), 1000);
    assert_eq!(format("</think><think> <answer>c</answer>"), 0);
    assert_eq!(format("<think></think>"), 0);
}

#[test]
fn the_same_mathematics_may_be_written_differently() {
    let math = |answer: &str, solution: &str| reward("MathReward", answer, &json!([["solution", solution]]));
    for (answer, solution, expected) in [
        ("\\boxed{\\frac{1}{2}}", "Thus \\boxed{0.5}", 1000),
        ("\\boxed{1/2}", "\\boxed{\\frac12}", 1000),
        ("\\boxed{-\\dfrac{3}{4}}", "\\boxed{-0.75}", 1000),
        ("\\boxed{1,000}", "\\boxed{1000}", 1000),
        ("\\boxed{\\(x^{2}\\)}", "\\boxed{x^2}", 1000),
        ("# Answer 7", "# Answer 7", 1000),
        ("\\boxed{7}", "\\boxed{8}", 0),
        ("\\boxed{x}", "\\boxed{y}", 0),
        ("\\boxed{1/0}", "\\boxed{1}", 0),
    ] {
        assert_eq!(math(answer, solution), expected, "{answer} {solution}");
    }
}

#[test]
fn the_truth_may_be_another_conversation() {
    let reward = Reward::Math("solution".to_owned());
    let says = |text: &str| json!({"messages": [{"role": "assistant", "content": text}]});
    assert_eq!(reward.rewards(&[says("\\boxed{2}")], &[says("it is \\boxed{2}")]).unwrap(), [1.0]);
    assert!(reward.rewards(&[says("a")], &[]).is_err());
}

#[test]
fn an_answer_about_an_image_is_compared_as_text_and_as_number() {
    let image = |answer: &str| reward("MultiModalAccuracyReward", answer, &json!([["ground_truth", "3"]]));
    assert_eq!(image("<answer> 3.0 </answer>"), 1000);
    assert_eq!(image("<answer>4</answer>"), 0);
    assert_eq!(image("3"), 0);
    assert_eq!(reward("MultiModalAccuracyReward", "<answer>Yes</answer>", &json!([["ground_truth", "yes"]])), 1000);
}

#[test]
fn olympiad_answers_earn_a_part_for_being_close() {
    let accuracy =
        |answer: &str, truth: &str| reward("OlympiadBenchAccuracyReward", answer, &json!([["ground_truth", truth]]));
    assert_eq!(accuracy("\\boxed{\\frac{3}{2}}", "$\\frac{3}{2}$"), 1000);
    assert_eq!(accuracy("\\boxed{5 \\text{ cm}}", "5"), 1000);
    assert_eq!(accuracy("\\boxed{３，４}", "3,4"), accuracy("\\boxed{3,4}", "3,4"));
    assert_eq!(accuracy("\\boxed{100.5}", "100"), 1000, "within one in a hundred");
    assert_eq!(accuracy("\\boxed{110}", "100"), 600, "0.99 / e^0.5");
    assert_eq!(accuracy("no box", "1"), 0);
    let several = json!([["ground_truth", "1, (2,3)"], ["is_multiple_answer", true]]);
    assert_eq!(reward("OlympiadBenchAccuracyReward", "\\boxed{1} or \\boxed{5}", &several), 500);
}

#[test]
fn olympiad_form_wants_one_answer_at_the_end() {
    let format = |answer: &str| reward("OlympiadBenchFormatReward", answer, &json!([]));
    assert_eq!(format("x = 1, \\boxed{1}"), 1000);
    assert_eq!(format(&format!("\\boxed{{1}}{}", "x".repeat(300))), 700);
    assert_eq!(format("\\boxed{1}\\boxed{2}\\boxed{\\{3\\}}"), 400);
    assert_eq!(format("none"), 0);
}

#[test]
fn olympiad_quality_likes_steps_and_dislikes_repetition() {
    let quality = |answer: &str| reward("OlympiadBenchQualityReward", answer, &json!([]));
    let steps = "Step 1: a = b + c. Step 2: d = a * 2 - 1. Step 3: e = d / 3 ^ 2. Therefore \\boxed{e}";
    assert!(quality(steps) > 700, "{}", quality(steps));
    assert!(quality(&"again and again ".repeat(60)) < quality(steps));
    assert_eq!(quality(""), 300);
}
