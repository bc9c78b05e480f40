//! Questions about a scene, with answers of one word. A question ends with the word it turns on, and without a
//! question mark: very small models learn to look up the word right before the answer, and little else.
//!
//! Rules that keep a turn from giving a later one away, and guessing from paying:
//!  - presence questions come first and are yes or no with equal odds (any other turn may name what is there);
//!  - an object is the answer of one turn at most, and of a pair of neighbours only one is asked for;
//!  - what is at an object's cell and where the object is are not both asked: each is the answer to the other;
//!  - nor are the colour behind an object and the colour at its cell, which are the same;
//!  - no question occurs twice; the number of things is asked once at most;
//!  - "nothing" is the answer of a fifth of the position questions and of about a third of the neighbour questions.

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::{IndexedRandom, SliceRandom};

use super::atlas::Atlas;
use super::config::SceneConfig;
use super::layout::{Scene, SceneObject};
use super::words::{NOTHING, NUMBERS, place_name};
use crate::question::QuestionKind;

/// A question with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What is asked.
    pub kind: QuestionKind,
    /// The words of the question, separated by spaces.
    pub text: String,
    /// One word.
    pub answer: String,
}

/// How often a position question is answered by "nothing" where the scene has a choice.
const EMPTY_CELLS: f64 = 0.2;

/// How often a neighbour question is answered by "nothing" where the scene has a choice. Few have: want of choice alone
/// makes "nothing" a third of the answers.
const NO_NEIGHBOUR: f64 = 0.05;

/// Draws up to `config.turns` questions.
pub(super) fn ask(
    scene: &Scene,
    config: &SceneConfig,
    atlas: &Atlas,
    rng: &mut Xoshiro256PlusPlus,
) -> Vec<Question> {
    let mut kinds = Vec::new();
    while kinds.len() < config.turns {
        let mut round = config.kinds.clone();
        round.shuffle(rng);
        kinds.extend(round);
    }
    kinds.truncate(config.turns);
    // Presence first, then what is hardest to find something to ask about; asked in another order below.
    kinds.sort_by_key(|&kind| match kind {
        QuestionKind::Presence => 0,
        QuestionKind::LeftOf | QuestionKind::RightOf => 1,
        _ => 2,
    });

    let mut sampler = QuestionSampler {
        scene,
        config,
        atlas,
        rng,
        asked: Vec::new(),
        answers: Vec::new(),
        located: Vec::new(),
        coloured: Vec::new(),
        pairs: Vec::new(),
    };
    for kind in kinds {
        // Where a scene has no question of this kind left, another kind takes the turn; not presence, whose turn is
        // over, and which only "no" would be left for.
        let mut others = config.kinds.clone();
        others.retain(|&other| other != QuestionKind::Presence || kind == other);
        others.shuffle(sampler.rng);
        let question =
            sampler.draw(kind).or_else(|| others.into_iter().find_map(|kind| sampler.draw(kind)));
        match question {
            Some(question) => sampler.asked.push(question),
            None => break,
        }
    }
    let mut asked = sampler.asked;
    let presence =
        asked.iter().take_while(|question| question.kind == QuestionKind::Presence).count();
    asked[presence..].shuffle(rng);
    asked
}

struct QuestionSampler<'a> {
    scene: &'a Scene,
    config: &'a SceneConfig,
    atlas: &'a Atlas,
    rng: &'a mut Xoshiro256PlusPlus,
    asked: Vec<Question>,
    /// Objects that were the answer of a turn.
    answers: Vec<&'a str>,
    /// Objects whose cell a turn told, by asking for what is there or for where they are.
    located: Vec<&'a str>,
    /// Objects whose colour a turn asked for, by name or by cell.
    coloured: Vec<&'a str>,
    /// Left cells of neighbours that were asked for.
    pairs: Vec<(usize, usize)>,
}

impl<'a> QuestionSampler<'a> {
    fn draw(&mut self, kind: QuestionKind) -> Option<Question> {
        let (text, answer) = match kind {
            QuestionKind::Presence => self.presence(),
            QuestionKind::Count => self.count(),
            QuestionKind::Position => self.position(),
            QuestionKind::LeftOf => self.neighbour("left"),
            QuestionKind::RightOf => self.neighbour("right"),
            QuestionKind::Colour => {
                self.colour(|_, object| format!("which colour is behind {}", object.name))
            }
            QuestionKind::ColourAt => self.colour(|grid, object| {
                format!("which colour is at {}", place_name(grid, object.cell))
            }),
            QuestionKind::Where => self.place(),
        }?;
        Some(Question { kind, text, answer })
    }

    fn is_new(&self, text: &str) -> bool {
        self.asked.iter().all(|question| question.text != text)
    }

    fn presence(&mut self) -> Option<(String, String)> {
        let there = self.rng.random_bool(0.5);
        let named = |name: &str| {
            self.asked.iter().any(|q| q.answer == name || q.text.split(' ').any(|w| w == name))
        };
        let classes: Vec<&str> = if there {
            self.scene
                .objects
                .iter()
                .map(|object| object.name)
                .filter(|name| !named(name))
                .collect()
        } else {
            let present = self.scene.present_classes();
            (0..self.config.classes)
                .filter(|class| !present.contains(class))
                .map(|class| self.atlas.classes()[class].name.as_str())
                .filter(|name| !named(name))
                .collect()
        };
        let name = classes.choose(self.rng)?;
        // By sound: an umbrella, but a unicorn.
        let vowel = name.starts_with(['a', 'e', 'i', 'o']) || name.starts_with("um");
        let article = if vowel { "an" } else { "a" };
        Some((format!("is there {article} {name}"), if there { "yes" } else { "no" }.to_string()))
    }

    fn count(&mut self) -> Option<(String, String)> {
        let text = "how many things".to_string();
        let answer = NUMBERS.get(self.scene.objects.len())?;
        self.is_new(&text).then(|| (text, answer.to_string()))
    }

    fn position(&mut self) -> Option<(String, String)> {
        let grid = self.scene.grid;
        let ask = |cell| format!("what is at {}", place_name(grid, cell));
        let cells = (0..grid * grid).map(|cell| (cell / grid, cell % grid));
        let (taken, empty): (Vec<_>, Vec<_>) = cells
            .filter(|&cell| self.is_new(&ask(cell)))
            .map(|cell| (cell, self.scene.at(cell)))
            .filter(|(_, object)| {
                object.is_none_or(|object| {
                    !self.answers.contains(&object.name) && !self.located.contains(&object.name)
                })
            })
            .partition(|(_, object)| object.is_some());
        let (cell, object) = self.choose(taken, empty, EMPTY_CELLS)?;
        self.located.extend(object.map(|object| object.name));
        Some((ask(cell), self.answer(object)))
    }

    fn neighbour(&mut self, side: &str) -> Option<(String, String)> {
        let ask = |object: &SceneObject| format!("what is {side} of {}", object.name);
        let scene = self.scene;
        let (with, without): (Vec<_>, Vec<_>) = scene
            .objects
            .iter()
            .filter(|object| self.is_new(&ask(object)))
            .map(|object| {
                let found =
                    if side == "left" { scene.left_of(object) } else { scene.right_of(object) };
                (object, found)
            })
            .filter(|(object, found)| {
                found.is_none_or(|found| {
                    let pair = object.cell.min(found.cell);
                    !self.answers.contains(&found.name) && !self.pairs.contains(&pair)
                })
            })
            .partition(|(_, found)| found.is_some());
        let (object, found) = self.choose(with, without, NO_NEIGHBOUR)?;
        if let Some(found) = found {
            self.pairs.push(object.cell.min(found.cell));
        }
        Some((ask(object), self.answer(found)))
    }

    /// The colour behind an object, which `ask` names or points at.
    fn colour(&mut self, ask: fn(usize, &SceneObject) -> String) -> Option<(String, String)> {
        let objects = self.scene.objects.iter();
        let left: Vec<_> = objects.filter(|object| !self.coloured.contains(&object.name)).collect();
        let object = *left.choose(self.rng)?;
        self.coloured.push(object.name);
        Some((ask(self.scene.grid, object), object.colour.name().to_string()))
    }

    fn place(&mut self) -> Option<(String, String)> {
        let objects = self.scene.objects.iter();
        let left: Vec<_> = objects.filter(|object| !self.located.contains(&object.name)).collect();
        let object = *left.choose(self.rng)?;
        self.located.push(object.name);
        let answer = place_name(self.scene.grid, object.cell).to_string();
        Some((format!("where is {}", object.name), answer))
    }

    /// One of `something`, or with probability `share` one of `nothing`; of the other if there is none.
    fn choose<T: Copy>(&mut self, something: Vec<T>, nothing: Vec<T>, share: f64) -> Option<T> {
        let empty = self.rng.random_bool(share);
        let (first, second) = if empty { (nothing, something) } else { (something, nothing) };
        first.choose(self.rng).or_else(|| second.choose(self.rng)).copied()
    }

    fn answer(&mut self, object: Option<&'a SceneObject>) -> String {
        match object {
            Some(object) => {
                self.answers.push(object.name);
                object.name.to_string()
            }
            None => NOTHING.to_string(),
        }
    }
}
