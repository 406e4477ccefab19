//! Conversations, token for token as transformers makes them of a model's own template.

use serde_json::Value;
use teeny_runtime::Chat;
use teeny_runtime::chat::{Before, CHAT_TEMPLATE};
use teeny_runtime::import::{ImportOptions, Source, write_hugging_face};
use teeny_runtime::tokenizer::Tokenizer;

use super::{folders, load};

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().expect("a list");
    list.iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// The tokens that a session holds before it answers the last message.
fn tokens(chat: &Chat, tokenizer: &Tokenizer, messages: &[(String, String)]) -> Vec<u32> {
    let (mut tokens, mut before, mut system) = (Vec::new(), Before::Nothing, None);
    for (role, content) in messages {
        match role.as_str() {
            "system" => system = Some(content.as_str()),
            "user" => tokens.extend(
                chat.turn(tokenizer, before, system, content).expect("all bytes have tokens"),
            ),
            _ => {
                tokens.extend(tokenizer.encode_plain(content).expect("all bytes have tokens"));
                tokens.push(chat.end());
                before = Before::Ended;
            }
        }
    }
    tokens
}

#[test]
fn conversations_are_those_of_transformers() {
    for folder in folders("chat-") {
        let name = folder.display();
        let json = std::fs::read_to_string(folder.join("case.json")).expect("a case");
        let json: Value = serde_json::from_str(&json).expect("JSON");
        let source = Source::open(&folder, &ImportOptions::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let weights = load(&source, None);
        let tokenizer = weights.tokenizer();
        let chat = Chat::new(&weights.metadata()[CHAT_TEMPLATE], tokenizer).expect("a known shape");
        assert_eq!(u64::from(chat.end()), json["end"].as_u64().expect("an id"), "{name}");
        for conversation in json["conversations"].as_array().expect("a list") {
            let messages: Vec<(String, String)> = conversation["messages"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|pair| {
                    let text = |i: usize| pair[i].as_str().expect("a text").to_owned();
                    (text(0), text(1))
                })
                .collect();
            let expected = ids(&conversation["ids"]);
            assert_eq!(tokens(&chat, tokenizer, &messages), expected, "{name}: {messages:?}");
        }
    }
}

/// A model of ours that is talked to is one of Hugging Face's too.
#[test]
fn templates_find_their_way_out() {
    for folder in folders("chat-") {
        let source = Source::open(&folder, &ImportOptions::default()).expect("a model");
        let weights = load(&source, None);
        let out = folder.with_file_name(format!(
            "outward-{}",
            folder.file_name().expect("a name").to_string_lossy()
        ));
        write_hugging_face(&weights, &out, None).expect("a folder that can be written");
        let back = load(&Source::open(&out, &ImportOptions::default()).expect("ours"), None);
        assert_eq!(back.metadata()[CHAT_TEMPLATE], weights.metadata()[CHAT_TEMPLATE]);
    }
}

#[test]
fn templates_of_other_shapes_are_refused() {
    let Some(folder) = folders("chat-llama3").pop() else { return };
    let source = Source::open(&folder, &ImportOptions::default()).expect("a model");
    let error =
        |template: &str| Chat::new(template, source.tokenizer()).expect_err(template).to_string();
    let message = error("{{ '[INST] ' + messages[0]['content'] + ' [/INST]' }}");
    assert!(message.contains("chat_template: found \"{{ '[INST] '"), "{message}");
    let message = error("{{ '<|start_header_id|>' + date_string }}");
    assert!(message.contains("expected a template of ChatML"), "{message}");
    let message = error("{{ '<|im_start|>' }}");
    assert!(message.contains("no token \"<|im_start|>\""), "{message}");
}
