//! Questions about scenes: answers restated from the layout, nothing given away, and guessing that does not pay.

use std::collections::HashSet;

use dualspeed_data::scene::place_name;
use dualspeed_data::{
    Atlas, Chance, Conversation, ExampleSource, QuestionKind, Scene, SceneConfig, SceneObject,
    Split, Template, Turn, chance, encode_prompt, scene_tokenizer,
};

use crate::scenes::source;

/// The answer, from where the drawings are on the picture and nothing else.
fn restated(scene: &Scene, question: &str) -> String {
    let cell = |object: &SceneObject| {
        let middle = |start: usize| (start + object.bbox.size / 2) * 3 / scene.image_size;
        (middle(object.bbox.y), middle(object.bbox.x))
    };
    let find = |name: &str| scene.objects.iter().find(|object| object.name == name);
    let name =
        |object: Option<&SceneObject>| object.map_or("nothing", |object| object.name).to_string();
    let at = |place: &str| {
        let named: Vec<_> =
            (0..9).map(|i| (i / 3, i % 3)).filter(|&c| place_name(3, c) == place).collect();
        assert_eq!(named.len(), 1, "{place} names one cell");
        scene.objects.iter().find(|object| cell(object) == named[0])
    };
    let words: Vec<&str> = question.split(' ').collect();
    match words[..] {
        ["is", "there", _, what] => if find(what).is_some() { "yes" } else { "no" }.into(),
        ["how", "many", "things"] => {
            ["two", "three", "four", "five"][scene.objects.len() - 2].into()
        }
        ["what", "is", "at", place] => name(at(place)),
        ["which", "colour", "is", "at", place] => at(place).unwrap().colour.name().into(),
        ["where", "is", what] => place_name(3, cell(find(what).unwrap())).into(),
        ["what", "is", side, "of", what] => {
            let (row, column) = cell(find(what).unwrap());
            let row_mates = scene.objects.iter().filter(|object| cell(object).0 == row);
            name(match side {
                "left" => row_mates.filter(|o| cell(o).1 < column).max_by_key(|o| cell(o).1),
                _ => row_mates.filter(|o| cell(o).1 > column).min_by_key(|o| cell(o).1),
            })
        }
        ["which", "colour", "is", "behind", what] => find(what).unwrap().colour.name().into(),
        _ => panic!("unknown question {question:?}"),
    }
}

fn all_kinds() -> SceneConfig {
    let kinds = QuestionKind::ALL.to_vec();
    SceneConfig { kinds, turns: 8, split: Split::Validation, ..Default::default() }
}

#[test]
fn answers_are_right_and_questions_differ() {
    let source = source(all_kinds());
    for index in 0..2000 {
        let (scene, questions) = (source.scene(index), source.questions(index));
        assert_eq!(questions.len(), 8);
        let mut named = HashSet::new();
        for question in &questions {
            assert_eq!(
                question.answer,
                restated(&scene, &question.text),
                "{index} {}",
                question.text
            );
        }
        assert!(
            questions.iter().all(|question| named.insert(&question.text)),
            "{index} repeats itself"
        );
        let answers = questions.iter().map(|q| &q.answer);
        let names =
            answers.filter(|answer| scene.objects.iter().any(|o| o.name == answer.as_str()));
        assert!(
            names.clone().count() == names.collect::<HashSet<_>>().len(),
            "{index} asks for an object twice"
        );
    }
}

/// Name and place of an object are each asked for with the other at hand, so only once; its colour also once; and
/// presence comes before anything that names an object.
#[test]
fn no_turn_gives_another_away() {
    for turns in [8, 16] {
        let source = source(SceneConfig { turns, ..all_kinds() });
        for index in 0..1000 {
            let (scene, questions) = (source.scene(index), source.questions(index));
            let named = |word: &str| scene.objects.iter().position(|o| o.name == word);
            let placed =
                |word: &str| scene.objects.iter().position(|o| place_name(3, o.cell) == word);
            let (mut located, mut coloured) = (HashSet::new(), HashSet::new());
            for question in &questions {
                let key = question.text.rsplit(' ').next().unwrap();
                let fresh = match question.kind {
                    QuestionKind::Position => placed(key).is_none_or(|o| located.insert(o)),
                    QuestionKind::Where => located.insert(named(key).unwrap()),
                    QuestionKind::Colour => coloured.insert(named(key).unwrap()),
                    QuestionKind::ColourAt => coloured.insert(placed(key).unwrap()),
                    _ => true,
                };
                assert!(fresh, "{index} tells {:?} beforehand: {questions:?}", question.text);
            }
            let mut late = questions.iter().skip_while(|q| q.kind == QuestionKind::Presence);
            assert!(late.all(|q| q.kind != QuestionKind::Presence), "{index}");
        }
    }
}

/// What a small model needs: the key word right before the answer, places in one token, no question mark.
#[test]
fn questions_end_with_their_key_word() {
    let tokenizer = scene_tokenizer().unwrap();
    let source = source(all_kinds());
    for index in 0..200 {
        let scene = source.scene(index);
        for question in source.questions(index) {
            let ids = tokenizer.encode(&question.text).unwrap();
            assert_eq!(ids.len(), question.text.split(' ').count(), "{}", question.text);
            let key = tokenizer.decode(&ids[ids.len() - 1..]).unwrap();
            let is_key = match question.kind {
                QuestionKind::Count => key == "things",
                QuestionKind::Position | QuestionKind::ColourAt => {
                    (0..9).any(|i| place_name(3, (i / 3, i % 3)) == key)
                }
                QuestionKind::Presence => Atlas::embedded().unwrap().class(&key).is_some(),
                _ => scene.objects.iter().any(|object| object.name == key),
            };
            assert!(is_key, "{}", question.text);
            if let Some(thing) = question.text.strip_prefix("is there ") {
                let vowel = ["apple", "umbrella"].contains(&key.as_str());
                assert_eq!(thing, format!("{} {key}", if vowel { "an" } else { "a" }));
            }
        }
    }
    assert_eq!(tokenizer.token_to_id("?"), None);
}

#[test]
fn a_question_may_be_typed_with_its_mark() {
    let tokenizer = scene_tokenizer().unwrap();
    let prompt = |text: &str| {
        let conversation = Conversation { system: None, turns: vec![Turn::open(text)] };
        encode_prompt(&conversation, Template::Qa, &tokenizer).unwrap()
    };
    let unknown = tokenizer.token_to_id("<unk>").unwrap();
    let plain = prompt("<image>\nwhere is the cat");
    assert!(!plain.contains(&unknown), "{plain:?}");
    for typed in ["where is the cat?", "Where is the cat ?", " where is the cat ?? \n"] {
        assert_eq!(prompt(&format!("<image>\n{typed}")), plain, "{typed:?}");
    }
    let strange = prompt("<image>\nwhere is the zyzzyva?");
    assert_eq!(strange[..strange.len() - 1], plain[..plain.len() - 1]);
    assert_eq!(strange.last(), Some(&unknown));
}

#[test]
fn guessing_does_not_pay() {
    let defaults = guesses(SceneConfig { text_only: true, ..Default::default() });
    assert!(defaults.accuracy < 0.24, "{}", defaults.accuracy);
    assert!(!defaults.by_kind.contains_key(&QuestionKind::LeftOf));
    assert!(guesses(SceneConfig { text_only: true, ..all_kinds() }).accuracy < 0.26);
}

/// Chance, after the checks on each kind of question.
fn guesses(config: SceneConfig) -> Chance {
    let kinds = config.kinds.clone();
    let source = source(config);
    let examples: Vec<_> =
        (0..3000).map(|index| ExampleSource::get(&source, index).unwrap()).collect();
    let questions = || examples.iter().flat_map(|example| &example.questions);
    let total = questions().count() as f64;
    let fair = 1.0 / kinds.len() as f64;
    for &kind in &kinds {
        let share = questions().filter(|question| question.kind == kind).count() as f64 / total;
        assert!((0.85 * fair..1.15 * fair).contains(&share), "{kind}: {share}");
    }
    let chance = chance(questions());
    let by = |kind| chance.by_kind[&kind].0;
    assert!(by(QuestionKind::Presence) < 0.53);
    assert!(by(QuestionKind::Count) < 0.28);
    assert!(by(QuestionKind::Colour) < 0.20);
    assert!(by(QuestionKind::ColourAt) < 0.20);
    assert!(by(QuestionKind::Where) < 0.15);
    let names = [QuestionKind::Position, QuestionKind::LeftOf, QuestionKind::RightOf];
    for kind in names.into_iter().filter(|kind| kinds.contains(kind)) {
        assert!((0.10..0.35).contains(&by(kind)), "{kind}: {:?}", chance.by_kind[&kind]);
        assert_eq!(chance.by_kind[&kind].1, "nothing");
    }
    chance
}
