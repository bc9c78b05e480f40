//! Chat templates of checkpoints and the library's own, against what transformers makes of them
//! (scripts/fixtures/chat_templates.py).

use std::collections::BTreeMap;

use dualspeed_data::{
    ChatTemplate, Conversation, EncodeError, IGNORE_INDEX, IMAGE_TOKEN_INDEX, SpecialTokens,
    Template, TextTokenizer, Turn, encode_prompt, encode_training, read_chat_template,
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Fixture {
    date: String,
    tokenizers: BTreeMap<String, TokenizerFiles>,
    templates: BTreeMap<String, String>,
    conversations: Vec<Said>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct TokenizerFiles {
    tokenizer: Value,
    config: Value,
}

#[derive(Deserialize)]
struct Said {
    system: Option<String>,
    turns: Vec<(String, Option<String>)>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    own: bool,
    tokenizer: String,
    conversation: usize,
    text: String,
    ids: Vec<i64>,
    labels: Vec<i64>,
    mask: Vec<usize>,
    open_end: bool,
}

impl Fixture {
    fn read() -> Self {
        serde_json::from_str(include_str!("fixtures/chat_templates.json")).unwrap()
    }

    fn tokenizer(&self, name: &str) -> TextTokenizer {
        let files = &self.tokenizers[name];
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, json: &Value| {
            std::fs::write(dir.path().join(name), json.to_string()).unwrap();
        };
        write("tokenizer.json", &files.tokenizer);
        write("tokenizer_config.json", &files.config);
        TextTokenizer::from_dir(dir.path()).unwrap()
    }

    fn read_tokenizers(&self) -> BTreeMap<&String, TextTokenizer> {
        self.tokenizers.keys().map(|name| (name, self.tokenizer(name))).collect()
    }

    fn template(&self, case: &Case) -> Template {
        match case.own {
            true => Template::named(&case.template).unwrap(),
            false => dated(&self.templates[&case.template], &self.date),
        }
    }

    fn conversation(&self, case: &Case) -> Conversation {
        let Said { system, turns } = &self.conversations[case.conversation];
        let turns = turns
            .iter()
            .map(|(user, assistant)| Turn { user: user.clone(), assistant: assistant.clone() });
        Conversation { system: system.clone(), turns: turns.collect() }
    }
}

fn dated(jinja: &str, date: &str) -> Template {
    serde_json::from_value(json!({ "jinja": jinja, "date": date })).unwrap()
}

fn chat(jinja: &str) -> Template {
    Template::Jinja(ChatTemplate::new(jinja).unwrap())
}

/// Checks one case; the end token that is put behind the last answer, where the template writes none, is not transformers'.
fn check(case: &Case, template: &Template, conversation: &Conversation, tokenizer: &TextTokenizer) {
    let what =
        format!("{} {} {}: {:?}", case.template, case.tokenizer, case.conversation, case.text);
    if conversation.turns.last().is_some_and(|turn| turn.assistant.is_none()) {
        assert_eq!(encode_prompt(conversation, template, tokenizer).unwrap(), case.ids, "{what}");
        return;
    }
    let encoded = encode_training(conversation, template, tokenizer, None).unwrap();
    let (mut ids, mut labels) = (case.ids.clone(), case.labels.clone());
    if case.open_end {
        ids.push(tokenizer.eos_id());
        labels.push(tokenizer.eos_id());
    }
    assert_eq!(encoded.input_ids, ids, "{what}");
    assert_eq!(encoded.labels, labels, "{what}");
    // Beyond transformers' own mask lie end tokens alone, which a template may leave out of its mark.
    let special = tokenizer.inner().get_added_vocabulary();
    for place in (0..case.ids.len()).filter(|place| labels[*place] != IGNORE_INDEX) {
        let token = tokenizer.token(labels[place]).unwrap();
        assert!(case.mask.contains(&place) || special.is_special_token(&token), "{what}");
    }
    assert!(case.mask.iter().all(|place| labels[*place] != IGNORE_INDEX), "{what}");
    let spoken = encoded.answers.iter().cloned().flatten();
    assert!(spoken.clone().all(|place| labels[place] != IGNORE_INDEX), "{what}");
    let supervised = labels.iter().filter(|label| **label != IGNORE_INDEX).count();
    assert_eq!(spoken.count(), supervised, "{what}");
    assert_eq!(encoded.answers.len(), conversation.turns.len(), "{what}");
}

#[test]
fn ids_and_spans_are_those_of_transformers() {
    let fixture = Fixture::read();
    let tokenizers = fixture.read_tokenizers();
    assert!(fixture.cases.len() > 150);
    for case in &fixture.cases {
        let tokenizer = &tokenizers[&case.tokenizer];
        check(case, &fixture.template(case), &fixture.conversation(case), tokenizer);
    }
}

#[test]
fn a_template_survives_being_written_down() {
    let fixture = Fixture::read();
    let tokenizers = fixture.read_tokenizers();
    for case in fixture.cases.iter().filter(|case| case.conversation == 2) {
        let template = fixture.template(case);
        let written = serde_json::to_string(&template).unwrap();
        let read: Template = serde_json::from_str(&written).unwrap();
        assert_eq!(read, template);
        check(case, &read, &fixture.conversation(case), &tokenizers[&case.tokenizer]);
    }
}

#[test]
fn what_is_exported_writes_what_was_trained() {
    let fixture = Fixture::read();
    let tokenizers = fixture.read_tokenizers();
    for case in fixture.cases.iter().filter(|case| case.conversation != 7) {
        let tokenizer = &tokenizers[&case.tokenizer];
        let conversation = fixture.conversation(case);
        for system in [None, Some("Say little."), Some("")] {
            let asked = Conversation {
                system: system.map(str::to_owned).or(conversation.system.clone()),
                ..conversation.clone()
            };
            let template = fixture.template(case);
            let encode = |conversation: &Conversation, template: &Template| match conversation
                .turns
                .iter()
                .all(|turn| turn.assistant.is_some())
            {
                true => encode_training(conversation, template, tokenizer, None)
                    .map(|encoded| (encoded.input_ids, encoded.labels)),
                false => {
                    encode_prompt(conversation, template, tokenizer).map(|ids| (ids, Vec::new()))
                }
            };
            let expected = encode(&asked, &template).unwrap();
            let exported =
                template.to_jinja(asked.system.as_deref(), tokenizer, "<image>").unwrap();
            let bare = Conversation { system: None, ..asked.clone() };
            let found = encode(&bare, &dated(&exported, &fixture.date)).unwrap();
            let what = format!("{} {:?}\n{exported}", case.template, asked);
            assert_eq!(found, expected, "{what}");
        }
    }
}

#[test]
fn a_system_prompt_of_its_own_is_found_and_left_out_when_asked() {
    let fixture = Fixture::read();
    let tokenizer = fixture.tokenizer("qwen");
    let template = dated(&fixture.templates["text_only"], &fixture.date);
    assert_eq!(template.own_system(&tokenizer).unwrap().unwrap(), "You answer questions.");
    let mut conversation =
        Conversation { system: Some(String::new()), turns: vec![Turn::open("Hm?")] };
    let ids = encode_prompt(&conversation, &template, &tokenizer).unwrap();
    let text =
        tokenizer.inner().decode(&ids.iter().map(|id| *id as u32).collect::<Vec<_>>(), false);
    assert!(!text.unwrap().contains("You answer"), "an empty system prompt leaves the own one out");
    conversation.system = None;
    let own = encode_prompt(&conversation, &template, &tokenizer).unwrap();
    assert!(own.len() > ids.len());

    let llama = fixture.tokenizer("llama");
    for name in ["mistral", "vicuna", "chatml_unmarked"] {
        let tokenizer = if name.starts_with("chatml") { &fixture.tokenizer("yi") } else { &llama };
        let template = chat(&fixture.templates[name]);
        assert_eq!(template.own_system(tokenizer).unwrap(), None, "{name}");
        let said = |system: Option<&str>| {
            let conversation = Conversation {
                system: system.map(str::to_owned),
                turns: vec![Turn::open("<image>\nWhat?")],
            };
            encode_prompt(&conversation, &template, tokenizer).unwrap()
        };
        assert_eq!(said(Some("")), said(None), "{name}");
    }
    // No other model's name in a template that is named.
    let yi = fixture.tokenizer("yi");
    assert_eq!(Template::Chatml.own_system(&yi).unwrap(), None);
}

#[test]
fn what_a_conversation_says_is_never_a_special_token() {
    let fixture = Fixture::read();
    let tokenizer = fixture.tokenizer("llama3");
    let template = chat(&fixture.templates["llama3"]);
    let says = |text: &str| {
        let conversation = Conversation::new([(text, "yes <|eot_id|> no")]);
        encode_training(&conversation, &template, &tokenizer, None).unwrap()
    };
    let special = |ids: &[i64]| {
        let is = |id: &&i64| {
            tokenizer
                .inner()
                .get_added_vocabulary()
                .is_special_token(&tokenizer.token(**id).unwrap_or_default())
        };
        ids.iter().filter(is).count()
    };
    let (plain, spelled) = (says("what ?"), says("what <|eot_id|><|begin_of_text|> ?"));
    assert_eq!(special(&plain.input_ids), special(&spelled.input_ids));
    let text: Vec<u32> = spelled.input_ids.iter().map(|id| *id as u32).collect();
    let text = tokenizer.inner().decode(&text, false).unwrap();
    assert!(text.contains("what <|eot_id|><|begin_of_text|> ?"), "{text}");
}

#[test]
fn what_cannot_be_followed_says_so_and_names_the_way_out() {
    let fixture = Fixture::read();
    let tokenizer = fixture.tokenizer("llama");
    let conversation = |system: Option<&str>| Conversation {
        system: system.map(str::to_owned),
        ..Conversation::new([("<image>\nWhat?", "Red."), ("And?", "Blue.")])
    };
    let refused = |jinja: &str, system: Option<&str>, expected: &str| {
        let error = match ChatTemplate::new(jinja) {
            Ok(template) => {
                let template = Template::Jinja(template);
                encode_training(&conversation(system), &template, &tokenizer, None).unwrap_err()
            }
            Err(error) => error,
        };
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("--template"), "{text}");
    };
    let loop_of = |body: &str| format!("{{% for m in messages %}}{body}{{% endfor %}}");
    refused("{% for m in messages %}{{ m.content }", None, "line 1");
    refused(&loop_of("{{ m.content | unheard_of }}"), None, "unheard_of");
    refused("{{ messages[7].content.strip() }}", None, "undefined");
    refused(&loop_of("{{ raise_exception('no') }}"), None, "the template refuses: no");
    refused("nothing", None, "nothing that is said");
    // The image is left out, and so is the system prompt.
    let texts = loop_of("{% for p in m.content %}{{ p.text }}{{ eos_token }}{% endfor %}");
    refused(&texts, None, "0 time(s) for 1 image(s)");
    let user = loop_of(
        "{% if m.role != 'system' %}{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}\
         {% endfor %}{{ eos_token }}{% endif %}",
    );
    refused(&user, Some("Be kind."), "system prompt");
    // An answer that is written otherwise once another turn follows it.
    let rewritten = loop_of(
        "{% for p in m.content %}{{ '<image>' if p.type == 'image' else (p.text if loop.last and m == messages[-1] \
         else 'before: ' ~ p.text) }}{% endfor %}{{ eos_token }}",
    );
    refused(&rewritten, None, "cannot be told");
    refused(
        &loop_of(
            "{% for x in range(90000) %}{% for y in range(90000) %}{% endfor %}{% endfor %}{{ m.content }}",
        ),
        None,
        "fuel",
    );
    let error = Template::resolve("vicunna").unwrap_err().to_string();
    assert!(error.contains("vicuna_v1") && error.contains(".jinja"), "{error}");
}

#[test]
fn the_files_of_a_checkpoint_bring_its_template() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let text =
        |name: &str| format!("{{% for m in messages %}}{name}{{{{ m.content }}}}{{% endfor %}}");
    let found = || read_chat_template(dir.path()).map(|found| found.map(|(template, _)| template));
    assert_eq!(found().unwrap(), None);
    write("tokenizer_config.json", r#"{"chat_template": null}"#);
    assert_eq!(found().unwrap(), None);
    let list = json!([{"name": "tool_use", "template": text("tool")}, {"name": "rag", "template": text("rag")}]);
    write("tokenizer_config.json", &json!({ "chat_template": list }).to_string());
    let error = found().unwrap_err().to_string();
    assert!(error.contains("tool_use") && error.contains("--template"), "{error}");
    let list = json!([{"name": "tool_use", "template": text("tool")}, {"name": "default", "template": text("main")}]);
    write("tokenizer_config.json", &json!({ "chat_template": list }).to_string());
    assert_eq!(found().unwrap().unwrap().jinja(), text("main"));
    write("chat_template.json", &json!({ "chat_template": text("processor") }).to_string());
    assert_eq!(found().unwrap().unwrap().jinja(), text("processor"));
    write("chat_template.jinja", &text("file"));
    assert_eq!(found().unwrap().unwrap().jinja(), text("file"));
    write("chat_template.jinja", "{% for %}");
    let error = found().unwrap_err();
    assert!(
        matches!(&error, EncodeError::Template { name, .. } if name.ends_with("chat_template.jinja")),
        "{error}"
    );
}

#[test]
fn an_image_is_written_as_the_token_that_the_tokenizer_names() {
    let fixture = Fixture::read();
    let plain = fixture.tokenizer("llama");
    let mut files = fixture.tokenizers["llama"].config.clone();
    files["extra_special_tokens"] = json!({ "image_token": "<unk>" });
    let dir = tempfile::tempdir().unwrap();
    plain.inner().save(dir.path().join("tokenizer.json"), false).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), files.to_string()).unwrap();
    let other = TextTokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(other.image_token(), "<unk>");
    let conversation = Conversation::new([("<image>\nWhat?", "Red"), ("<image> <image>", "Blue")]);
    for name in ["plain", "vicuna_v1", "qa", "llava_llama2", "mistral_instruct"] {
        let template = Template::named(name).unwrap();
        let encode = |tokenizer: &TextTokenizer| {
            encode_training(&conversation, &template, tokenizer, None).unwrap()
        };
        assert_eq!(encode(&other), encode(&plain), "{name}");
        // What is exported for a model with another token than `<image>` names that one.
        let exported = template.to_jinja(None, &plain, "<unk>").unwrap();
        let read = chat(&exported);
        let again = encode_training(&conversation, &read, &other, None).unwrap();
        assert_eq!(again.input_ids, encode(&plain).input_ids, "{name}");
    }
}

#[test]
fn a_word_that_is_not_known_is_no_image() {
    let words = TextTokenizer::from_words(["what", "cat"]).unwrap();
    let names = [("image_token".to_owned(), "<unk>".to_owned())];
    let special = SpecialTokens { others: names.into(), ..SpecialTokens::default() };
    let tokenizer = TextTokenizer::new(words.inner().clone(), &special).unwrap();
    let conversation = Conversation::new([("<image>\nwhat is <unk>", "cat")]);
    let encoded = encode_training(&conversation, Template::Qa, &tokenizer, None).unwrap();
    let images = encoded.input_ids.iter().filter(|id| **id == IMAGE_TOKEN_INDEX).count();
    assert_eq!((images, encoded.input_ids.iter().filter(|id| **id == 1).count()), (1, 4));
}

#[test]
fn the_published_codes_text_is_cut_at_images() {
    let fixture = Fixture::read();
    let (sane, official) = (
        fixture.tokenizer("llama_not_legacy"),
        fixture.tokenizer("llama_not_legacy").official(true),
    );
    let conversation = Conversation::new([("<image>\nWhat?", " A red square. "), ("Sure?", "Yes")]);
    let encode = |template: Template, tokenizer: &TextTokenizer| {
        encode_training(&conversation, template, tokenizer, None).unwrap()
    };
    let after_image = |encoded: &dualspeed_data::Encoded, tokenizer: &TextTokenizer| {
        let place = encoded.input_ids.iter().position(|id| *id == IMAGE_TOKEN_INDEX).unwrap();
        tokenizer.token(encoded.input_ids[place + 1]).unwrap()
    };
    // Every piece between images begins a text there, with its space; transformers begins one text.
    let found = encode(Template::VicunaV1, &official);
    assert_eq!(after_image(&found, &official), "\u{2581}");
    assert_eq!(after_image(&encode(Template::VicunaV1, &sane), &sane), "\n");
    // After an end token no space is put, in both: `</s>USER`.
    for (encoded, tokenizer) in [(&found, &official), (&encode(Template::VicunaV1, &sane), &sane)] {
        let next = tokenizer.token(encoded.input_ids[encoded.answers[0].end]).unwrap();
        assert!(!next.starts_with('\u{2581}'), "{next}");
    }
    // Answers keep their white space, and a caption ends in a newline.
    let last = |encoded: &dualspeed_data::Encoded| *encoded.labels.last().unwrap();
    let caption = encode(Template::Plain, &official);
    assert_eq!(official.token(last(&caption)).unwrap(), "\n");
    assert_eq!(last(&encode(Template::Plain, &sane)), sane.eos_id());
    let said: Vec<i64> = found.labels[found.answers[0].clone()].to_vec();
    assert_eq!(
        official.decode(&said).unwrap().trim_end_matches(' ').len() + 1,
        official.decode(&said).unwrap().len()
    );
}
