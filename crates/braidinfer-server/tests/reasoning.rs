//! Models of all families that reason, call tools and answer, from a script: what clients get of it, and send back.

mod support;

use braidinfer::Llm;
use braidinfer::LoadOptions;
use braidinfer::model::ModelSource;
use braidinfer_server::ServerConfig;
use serde_json::{Value, json};
use support::scripted_model::{Script, ScriptedAnswer};
use support::{Model, TestServer, config, with};
