//! Many requests at once: the same answers as one at a time, to the bit, whatever the company, the order of arrival, the
//! prefix cache and the room for keys and values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::forced::forced;
use crate::support::{self, Fixture};
#[cfg(feature = "gpu")]
use braidinfer::compat::Precision;
use braidinfer::engine::{ClientId, Pooling, TokenLogprobs};
use braidinfer::executor::standard::ComputeDtype;
use braidinfer::executor::{ActiveKernels, Batch, Kernels, KvDtype, Recorder, SequenceSlice};
#[cfg(feature = "gpu")]
use braidinfer::executor::{DeviceChoice, GpuChoice};
use braidinfer::model::ModelSource;
use braidinfer::model::quantization::FileType;
use braidinfer::{
    DraftOptions, Error, Event, FinishReason, KvCacheRoom, Llm, LoadOptions, Output, RequestId, SamplingParams,
    SavedPrefixes, Threads, Token, quantize,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Requests of one round.
const REQUESTS: usize = 64;

fn open(source: &ModelSource, options: LoadOptions) -> Llm {
    let llm = Llm::open(source, &options, &|_, _| {}).unwrap_or_else(|error| panic!("{}: {error}", source.label()));
    assert_eq!(llm.kernels(), ActiveKernels::Fused, "only fused kernels owe the same bits");
    llm
}

fn demo() -> ModelSource {
    ModelSource::Directory(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../braidinfer-cli/demo-model"))
}

fn token(event: Event) -> Token {
    match event.output.expect("it is sampled") {
        Output::Token(token) => token,
        Output::Embedding(_) => panic!("no vector was asked for"),
    }
}

/// What a request asks for, and after how many tokens it is cancelled, if at all.
#[derive(Debug, Clone)]
struct Asked {
    prompt: Vec<u32>,
    params: SamplingParams,
    cancelled_after: Option<usize>,
}

/// Everything that an answer says, with probabilities by their bits.
#[derive(Debug, Clone, PartialEq, Default)]
struct Said {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<(u32, Vec<(u32, u32)>)>,
    finished: Option<FinishReason>,
}

impl Said {
    fn take(&mut self, token: Token) {
        self.ids.push(token.id);
        self.text += &token.text;
        self.finished = token.finished;
        let bits = |of: TokenLogprobs| {
            let top = of.top.into_iter().map(|(id, logprob)| (id, logprob.to_bits())).collect();
            (of.logprob.to_bits(), top)
        };
        self.logprobs.extend(token.logprobs.map(bits));
    }
}

/// Prompts of all lengths, many of which begin alike, greedy and sampled.
fn requests(count: usize, vocab: usize, context: usize, rng: &mut SmallRng) -> Vec<Asked> {
    let beginnings: Vec<Vec<u32>> =
        (0..3).map(|_| (0..context / 2).map(|_| rng.random_range(0..vocab as u32)).collect()).collect();
    let request = |_| {
        let shared = rng.random_range(0..=context / 2);
        let mut prompt = beginnings[rng.random_range(0..3)][..shared].to_vec();
        let own = rng.random_range(1..=context / 4);
        prompt.extend((0..own).map(|_| rng.random_range(0..vocab as u32)));
        let sampled = rng.random_bool(0.5);
        let params = SamplingParams {
            temperature: if sampled { 1.2 } else { 0.0 },
            top_k: sampled.then_some(40),
            repetition_penalty: if rng.random_bool(0.3) { 1.3 } else { 1.0 },
            seed: Some(rng.random_range(0..1000)),
            max_tokens: Some(rng.random_range(1..=context / 4)),
            logprobs: rng.random_bool(0.5).then_some(3),
            ignore_eos: rng.random_bool(0.5),
            ..SamplingParams::default()
        };
        let cancelled_after = rng.random_bool(0.2).then(|| rng.random_range(0..8));
        Asked { prompt, params, cancelled_after }
    };
    (0..count).map(request).collect()
}

/// The answer to a request that has the engine for itself.
fn alone(llm: &mut Llm, asked: &Asked) -> Said {
    // Taking the decoder empties the prefix cache.
    llm.decoder_mut().expect("nothing runs");
    llm.add(asked.prompt.clone(), &asked.params).expect("the request is sound");
    let mut said = Said::default();
    while llm.has_unfinished() {
        llm.step().expect("the step runs").into_iter().for_each(|event| said.take(token(event)));
    }
    said
}

/// The answers to requests that arrive at random, at most `at_once` of them in flight.
fn together(llm: &mut Llm, asked: &[Asked], at_once: usize, rng: &mut SmallRng) -> Vec<Said> {
    let mut said = vec![Said::default(); asked.len()];
    let mut in_flight: BTreeMap<RequestId, usize> = BTreeMap::new();
    let mut next = 0;
    while next < asked.len() || !in_flight.is_empty() {
        while next < asked.len() && in_flight.len() < at_once && (in_flight.is_empty() || rng.random_bool(0.5)) {
            let request = llm.add(asked[next].prompt.clone(), &asked[next].params).expect("the request is sound");
            in_flight.insert(request, next);
            next += 1;
        }
        for event in llm.step().expect("the step runs") {
            let request = event.request;
            let token = token(event);
            let Some(index) = in_flight.get(&request).copied() else { continue };
            let ended = token.finished.is_some();
            said[index].take(token);
            if ended || asked[index].cancelled_after.is_some_and(|tokens| said[index].ids.len() > tokens) {
                llm.abort(request);
                in_flight.remove(&request);
            }
        }
    }
    said
}

/// Holds what was said in company to what is said alone; a cancelled answer is a beginning of it.
fn compare(what: &str, asked: &[Asked], expected: &[Said], said: &[Said]) {
    for (index, ((asked, expected), said)) in asked.iter().zip(expected).zip(said).enumerate() {
        if asked.cancelled_after.is_none() {
            assert_eq!(said, expected, "{what}, request {index}: {asked:?}");
        } else {
            let tokens = said.ids.len();
            assert_eq!(said.ids, expected.ids[..tokens], "{what}, request {index}");
            assert!(expected.text.starts_with(&said.text), "{what}, request {index}");
            let given = said.logprobs.len();
            assert_eq!(said.logprobs, expected.logprobs[..given], "{what}, request {index}");
        }
    }
}

fn nothing_is_left(llm: &Llm, what: &str) {
    let stats = llm.stats();
    assert_eq!((stats.running, stats.waiting, stats.kv_cache_usage), (0, 0, 0.0), "{what}");
}

#[test]
fn company_changes_no_bit() {
    // All kinds of layers: plain, windows of two patterns, norms on queries and keys, RoPE by length, experts, sinks, shared
    // keys, several residual streams, latent attention. Hybrids have a test of their own.
    let dense = ["llama", "qwen3", "gemma3", "mistral", "phi3-longrope", "ernie4_5"];
    for name in dense.into_iter().chain(["qwen3_moe", "gpt_oss-mxfp4", "gemma4", "gemma3n", "deepseek_v3"]) {
        nothing_changes(name, REQUESTS, &LoadOptions::default());
    }
}

/// The device computes what greedy requests take, and gives out logits for the others.
#[cfg(feature = "gpu")]
#[test]
fn company_changes_no_bit_on_a_gpu() {
    if support::adapter().is_some() {
        // Fewer: where a program behaves like a GPU, each step takes long.
        nothing_changes("gemma3", REQUESTS / 5, &on_gpu());
    }
}

#[cfg(feature = "gpu")]
fn on_gpu() -> LoadOptions {
    LoadOptions { device: DeviceChoice::Gpu(vec![GpuChoice::Best]), ..LoadOptions::default() }
}

#[cfg(feature = "gpu")]
fn embedding(llm: &mut Llm, prompt: &[u32]) -> Vec<f32> {
    llm.add_embedding(prompt.to_vec(), Pooling::Mean).expect("the request is sound");
    loop {
        for event in llm.step().expect("the step runs") {
            if let Output::Embedding(embedding) = event.output.expect("it is computed") {
                return embedding.values;
            }
        }
    }
}

/// With drafts, which repeating prompts invite where they cost little, and embeddings.
#[cfg(feature = "gpu")]
#[test]
fn a_gpu_says_what_the_cpu_says() {
    if support::adapter().is_none() {
        return;
    }
    let exact = LoadOptions { precision: Precision::Exact, ..LoadOptions::default() };
    let mut cpu = open(&demo(), exact.clone());
    let mut gpu = open(&demo(), LoadOptions { precision: Precision::Exact, ..on_gpu() });
    for prompt in [(100..150).collect::<Vec<u32>>(), [7, 8, 9, 10, 11].repeat(9), vec![1], (40..90).collect()] {
        let params = SamplingParams { max_tokens: Some(48), ignore_eos: true, ..SamplingParams::default() };
        let asked = Asked { prompt, params, cancelled_after: None };
        assert_eq!(alone(&mut gpu, &asked).ids, alone(&mut cpu, &asked).ids);
        let vectors = [&mut gpu, &mut cpu].map(|llm| embedding(llm, &asked.prompt));
        let cosine: f32 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.9999, "embeddings have a cosine of {cosine}");
    }
}

/// Requests that were begun go on, on the CPU, and say what they would have said.
#[cfg(feature = "gpu")]
#[test]
fn requests_outlive_a_gpu_that_is_lost() {
    if support::adapter().is_none() {
        return;
    }
    let exact = |options| LoadOptions { precision: Precision::Exact, ..options };
    let mut llm = open(&demo(), exact(LoadOptions::default()));
    let params = SamplingParams { max_tokens: Some(40), ignore_eos: true, ..SamplingParams::default() };
    let prompts = [vec![5, 6, 7], (30..90).collect::<Vec<u32>>()];
    let asked = prompts.map(|prompt| Asked { prompt, params: params.clone(), cancelled_after: None });
    let expected: Vec<Said> = asked.iter().map(|asked| alone(&mut llm, asked)).collect();
    let mut llm = open(&demo(), exact(on_gpu()));
    let requests = asked.map(|asked| llm.add(asked.prompt, &asked.params).expect("the request is sound"));
    let mut said = vec![Said::default(); 2];
    for step in 0.. {
        if step == 10 {
            assert!(llm.device() != "cpu" && llm.stats().device_bytes > 0, "a GPU computes");
            assert!(llm.give_up_device());
        }
        for event in llm.step().expect("the step runs, on the CPU if need be") {
            let index = usize::from(event.request == requests[1]);
            said[index].take(token(event));
        }
        if !llm.has_unfinished() {
            break;
        }
    }
    assert_eq!(said, expected);
    let notices = llm.take_notices();
    // And how the CPU was loaded.
    let first = notices.first().expect("the loss is said");
    assert!(first.contains("was lost") && first.contains("on the CPU"), "{notices:?}");
    assert_eq!((llm.device(), llm.stats().device_bytes), ("cpu", 0));
    nothing_is_left(&llm, "after the loss");
}

/// They are rounded once, when they are written, and the prefix cache reads what was written.
#[test]
fn company_changes_no_bit_of_quantized_keys_and_values() {
    for (name, kv_dtype) in [("llama", KvDtype::Q8_0), ("gemma3", KvDtype::Q4_0), ("deepseek_v3", KvDtype::Q8_0)] {
        let forced = LoadOptions { kernels: Kernels::Fused, force: true, ..LoadOptions::default() };
        nothing_changes(name, REQUESTS, &LoadOptions { kv_dtype: Some(kv_dtype), ..forced });
    }
}

/// Each request of many says the same alone, beside others, from the prefix cache and after it lost its place.
fn nothing_changes(name: &str, count: usize, options: &LoadOptions) {
    let fixture = Fixture::open(name);
    let source = &fixture.source;
    // Alone, nothing is guessed or found, either.
    let plain = LoadOptions { prompt_lookup: false, prefix_cache: false, ..options.clone() };
    let mut llm = open(source, plain);
    let (vocab, context) = (llm.spec().vocab_size, llm.context().min(256));
    let mut rng = SmallRng::seed_from_u64(7);
    let asked = requests(count, vocab, context, &mut rng);
    let expected: Vec<Said> = asked.iter().map(|asked| alone(&mut llm, asked)).collect();
    let mut llm = open(source, options.clone());
    for at_once in [1, 3, 16] {
        llm.decoder_mut().expect("nothing runs");
        for cache in ["cold", "warm"] {
            let what = format!("{name}, {at_once} at once, {cache}");
            compare(&what, &asked, &expected, &together(&mut llm, &asked, at_once, &mut rng));
            nothing_is_left(&llm, &what);
        }
    }
    // Room for little more than one sequence: others lose theirs and are computed again.
    let narrow = LoadOptions { kv_cache: KvCacheRoom::Tokens(context + 32), context: Some(context), ..options.clone() };
    let mut narrow = open(source, narrow);
    compare(&format!("{name}, narrow"), &asked, &expected, &together(&mut narrow, &asked, 16, &mut rng));
    assert!(narrow.stats().preemptions > 0, "{name}: nothing was preempted");
    nothing_is_left(&narrow, name);
}

#[test]
fn guesses_change_no_greedy_answer_of_any_fixture() {
    guesses_change_nothing(Fixture::all(), &LoadOptions::default());
}

#[cfg(feature = "gpu")]
#[test]
fn guesses_change_no_greedy_answer_on_a_gpu() {
    if support::adapter().is_some() {
        guesses_change_nothing(["llama", "gemma3", "qwen3-window"].map(Fixture::open), &on_gpu());
    }
}

fn guesses_change_nothing(fixtures: impl IntoIterator<Item = Fixture>, options: &LoadOptions) {
    let (mut guesses, mut right) = (0, 0);
    for fixture in fixtures {
        let options = LoadOptions { kernels: Kernels::Fused, force: true, ..options.clone() };
        let mut plain = open(&fixture.source, LoadOptions { prompt_lookup: false, ..options.clone() });
        let mut guessing = open(&fixture.source, options);
        // Longer than all windows; some fixtures have room for thousands of tokens.
        let (vocab, context) = (plain.spec().vocab_size as u32, plain.context().min(128));
        let mut rng = SmallRng::seed_from_u64(3);
        for period in [2, 5, 11] {
            // What repeats itself is there to be looked up, whether the answer goes on with it or not.
            let piece: Vec<u32> = (0..period).map(|_| rng.random_range(0..vocab)).collect();
            let prompt: Vec<u32> = piece.iter().copied().cycle().take(context / 3).collect();
            let params =
                SamplingParams { max_tokens: Some(context / 2), ignore_eos: true, ..SamplingParams::default() };
            let asked = Asked { prompt, params, cancelled_after: None };
            assert_eq!(alone(&mut guessing, &asked), alone(&mut plain, &asked), "{}", fixture.name);
        }
        let stats = guessing.stats();
        (guesses, right) = (guesses + stats.draft_tokens, right + stats.accepted_tokens);
        assert_eq!(plain.stats().draft_tokens, 0);
    }
    assert!(0 < right && right < guesses, "{right} of {guesses} guesses were right");
}

/// A model that guesses the tokens of another one, and errs now and then: its weights in 4 bits.
fn coarser(source: &ModelSource, folder: &tempfile::TempDir) -> DraftOptions {
    let path = folder.path().join("coarser.gguf");
    let threads = Threads::new(Some(1)).expect("there is a thread");
    let mut go_on = |_, _| std::ops::ControlFlow::Continue(());
    quantize(source, &path, FileType::Q4_0, false, &threads, &mut go_on).expect("it can be quantized");
    DraftOptions { source: ModelSource::open(path).expect("it is a model"), tokens: Some(3) }
}

#[test]
fn a_draft_model_changes_no_bit() {
    for name in ["llama", "gemma3", "qwen2"] {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let draft = Some(coarser(&Fixture::open(name).source, &folder));
        let options = LoadOptions { draft, prompt_lookup: false, ..LoadOptions::default() };
        nothing_changes(name, REQUESTS, &options);
    }
}

#[test]
fn a_draft_model_changes_no_greedy_answer_of_any_fixture() {
    let (mut fixtures, mut guesses, mut right) = (0, 0, 0);
    for fixture in Fixture::all() {
        let options = LoadOptions { kernels: Kernels::Fused, force: true, ..LoadOptions::default() };
        let draft = Some(DraftOptions { source: fixture.source.clone(), tokens: Some(4) });
        let mut guessing = match Llm::open(&fixture.source, &LoadOptions { draft, ..options.clone() }, &|_, _| {}) {
            Ok(llm) => llm,
            Err(error) => {
                let spec = fixture.spec();
                assert!((0..spec.layers.len()).any(|layer| spec.is_recurrent(layer)), "{}: {error}", fixture.name);
                assert!(error.to_string().contains("all attention"), "{error}");
                continue;
            }
        };
        let mut plain = open(&fixture.source, LoadOptions { prompt_lookup: false, ..options });
        let (vocab, context) = (plain.spec().vocab_size as u32, plain.context().min(128));
        let mut rng = SmallRng::seed_from_u64(5);
        for temperature in [0.0, 0.9] {
            let prompt: Vec<u32> = (0..context / 4).map(|_| rng.random_range(0..vocab)).collect();
            let (max_tokens, seed) = (Some(context / 2), Some(rng.random_range(0..1000)));
            let params =
                SamplingParams { max_tokens, seed, temperature, ignore_eos: true, ..SamplingParams::default() };
            let asked = Asked { prompt, params, cancelled_after: None };
            assert_eq!(alone(&mut guessing, &asked), alone(&mut plain, &asked), "{}", fixture.name);
        }
        let stats = guessing.stats();
        (guesses, right) = (guesses + stats.draft_tokens, right + stats.accepted_tokens);
        fixtures += usize::from(stats.draft_tokens > 0);
    }
    // The same model guesses all that it would choose itself.
    assert!(
        fixtures > 40 && right * 100 > guesses * 99,
        "{right} of {guesses} guesses of {fixtures} fixtures were right"
    );
}

/// Prompts that begin alike, of which each is longer than several blocks.
fn long_prompts(vocab: u32) -> [Vec<u32>; 2] {
    let mut rng = SmallRng::seed_from_u64(11);
    let beginning: Vec<u32> = (0..70).map(|_| rng.random_range(0..vocab)).collect();
    [3, 9].map(|more| beginning.iter().copied().chain((0..more).map(|_| rng.random_range(0..vocab))).collect())
}

fn greedy(prompt: &[u32]) -> Asked {
    let params =
        SamplingParams { max_tokens: Some(12), ignore_eos: true, logprobs: Some(2), ..SamplingParams::default() };
    Asked { prompt: prompt.to_vec(), params, cancelled_after: None }
}

#[test]
fn saved_prompts_change_no_bit() {
    for (name, kv_dtype) in [
        ("llama", None),
        ("gemma3", Some(KvDtype::F32)),
        ("qwen3-window", Some(KvDtype::F16)),
        ("llama", Some(KvDtype::Q8_0)),
        ("deepseek_v3", Some(KvDtype::Q4_0)),
    ] {
        let source = &Fixture::open(name).source;
        let forced = LoadOptions { kernels: Kernels::Fused, force: true, kv_dtype, ..LoadOptions::default() };
        let mut plain = open(source, LoadOptions { prompt_lookup: false, ..forced.clone() });
        let prompts = long_prompts(plain.spec().vocab_size as u32);
        let expected = prompts.clone().map(|prompt| alone(&mut plain, &greedy(&prompt)));
        let folder = tempfile::tempdir().expect("a folder can be made");
        // In a file, which one process writes and another one reads.
        let options = LoadOptions { saved_prefixes: Some(SavedPrefixes::Files), ..forced.clone() };
        let path = folder.path().join("prompt");
        let mut first = open(source, options.clone());
        assert_eq!(first.restore_prompt(&path, &prompts[0], None).expect("there is none"), 0);
        assert_eq!(alone(&mut first, &greedy(&prompts[0])), expected[0], "{name}");
        let whole: Vec<u32> = prompts[0].iter().chain(&expected[0].ids).copied().collect();
        let saved = first.save_prompt(&path, &whole, None).expect("it can be saved");
        assert!(saved >= 64 && saved < whole.len(), "{name}: {saved}");
        let mut second = open(source, options.clone());
        assert_eq!(second.restore_prompt(&path, &prompts[1], None).expect("it is there"), 64, "{name}");
        assert_eq!(
            together(&mut second, &[greedy(&prompts[1])], 1, &mut SmallRng::seed_from_u64(1)),
            [expected[1].clone()]
        );
        assert_eq!(second.stats().prefix_hits, 64, "{name}");
        // Other kernels are another matter.
        let other = LoadOptions {
            kv_dtype: Some(if kv_dtype == Some(KvDtype::F32) { KvDtype::F16 } else { KvDtype::F32 }),
            ..options
        };
        let error = open(source, other).restore_prompt(&path, &prompts[1], None).expect_err("they store it otherwise");
        assert!(error.to_string().contains("remove it to make a new one"), "{error}");
        // In a folder, as it is computed.
        let kept = SavedPrefixes::Folder { folder: folder.path().join("all"), most_bytes: 1 << 30 };
        let options = LoadOptions { saved_prefixes: Some(kept), ..forced };
        let mut first = open(source, options.clone());
        assert_eq!(alone(&mut first, &greedy(&prompts[0])), expected[0], "{name}");
        drop(first);
        let mut second = open(source, options);
        assert_eq!(alone(&mut second, &greedy(&prompts[1])), expected[1], "{name}");
        let stats = second.stats();
        assert_eq!((stats.restored_blocks, stats.prefix_hits), (4, 64), "{name}");
    }
}

#[test]
fn prompts_of_models_with_states_are_not_saved_and_that_is_said() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let source = &Fixture::open("qwen3_5").source;
    let forced = LoadOptions { kernels: Kernels::Fused, force: true, ..LoadOptions::default() };
    let options = LoadOptions { saved_prefixes: Some(SavedPrefixes::Files), ..forced.clone() };
    let path = folder.path().join("prompt");
    let error = open(source, options).restore_prompt(&path, &[1, 2, 3], None).expect_err("it has states").to_string();
    assert!(error.contains("all attention"), "{error}");
    let kept = SavedPrefixes::Folder { folder: folder.path().to_owned(), most_bytes: 1 << 30 };
    let llm = open(source, LoadOptions { saved_prefixes: Some(kept), ..forced.clone() });
    assert!(llm.notes().iter().any(|note| note.contains("not kept on the disk")), "{:?}", llm.notes());
    let unasked =
        open(&Fixture::open("llama").source, forced).save_prompt(&path, &[1], None).expect_err("it was not asked for");
    assert!(unasked.to_string().contains("saved_prefixes"), "{unasked}");
}

#[test]
fn a_draft_model_must_have_the_same_tokens() {
    let llama = Fixture::open("llama");
    let other = Fixture::all().into_iter().find(|other| other.spec().vocab_size != llama.spec().vocab_size);
    let draft = Some(DraftOptions { source: other.expect("there is one").source, tokens: None });
    let options = LoadOptions { draft, ..LoadOptions::default() };
    let error = Llm::open(&llama.source, &options, &|_, _| {}).err().expect("it has other tokens").to_string();
    assert!(error.contains("draft") && error.contains("the tokens of"), "{error}");
}

#[test]
fn prefixes_are_found_and_said() {
    let mut llm = open(&demo(), LoadOptions::default());
    let prompt: Vec<u32> = (100..150).collect();
    let params = SamplingParams { max_tokens: Some(4), ..SamplingParams::default() };
    let cached = |llm: &mut Llm, prompt: &[u32], params: &SamplingParams| {
        llm.add(prompt.to_vec(), params).expect("the request is sound");
        let mut first = None;
        while llm.has_unfinished() {
            for event in llm.step().expect("the step runs") {
                first = first.or(token(event).prompt);
            }
        }
        first.map(|prompt| (prompt.num_tokens, prompt.num_cached_tokens))
    };
    assert_eq!(cached(&mut llm, &prompt, &params), Some((50, 0)));
    assert_eq!(cached(&mut llm, &prompt, &params), Some((50, 48)));
    assert_eq!(cached(&mut llm, &prompt[..32], &params), Some((32, 16)), "the last token is computed for its logits");
    assert_eq!(cached(&mut llm, &prompt[1..], &params), Some((49, 0)));
    let stats = llm.stats();
    assert_eq!((stats.prefix_queries, stats.prefix_hits), (50 + 50 + 32 + 49, 64));
    // Every token's logits are wanted, so that none can be taken from the cache.
    let all = SamplingParams { prompt_logprobs: Some(0), ..params.clone() };
    assert_eq!(cached(&mut llm, &prompt, &all), Some((50, 0)));
    let mut without = open(&demo(), LoadOptions { prefix_cache: false, ..LoadOptions::default() });
    assert_eq!(cached(&mut without, &prompt, &params), Some((50, 0)));
    assert_eq!(cached(&mut without, &prompt, &params), Some((50, 0)));
}

#[test]
fn logprobs_are_those_of_the_logits() {
    let mut llm = open(&demo(), LoadOptions::default());
    let prompt: Vec<u32> = (300..330).collect();
    let params = SamplingParams {
        max_tokens: Some(5),
        logprobs: Some(4),
        prompt_logprobs: Some(2),
        ignore_eos: true,
        ..SamplingParams::default()
    };
    llm.add(prompt.clone(), &params).expect("the request is sound");
    let (mut all, mut of_prompt, mut of_answer) = (prompt.clone(), Vec::new(), Vec::new());
    while llm.has_unfinished() {
        for event in llm.step().expect("the step runs") {
            let token = token(event);
            all.push(token.id);
            of_prompt.extend(token.prompt.into_iter().flat_map(|prompt| prompt.logprobs.unwrap_or_default()));
            of_answer.extend(token.logprobs);
        }
    }
    assert_eq!((of_prompt.len(), of_answer.len()), (29, 5));
    let rows = llm.logits(&all, true).expect("the logits are computed");
    for (index, found) in of_prompt.iter().chain(&of_answer).enumerate() {
        let row: Vec<f64> = rows[index].iter().map(|logit| f64::from(*logit)).collect();
        let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
        assert_eq!(found.token, all[index + 1]);
        let expected = row[found.token as usize] - sum.ln();
        assert!((f64::from(found.logprob) - expected).abs() < 1e-4, "{index}: {} {expected}", found.logprob);
        assert_eq!(found.top.len(), if index < 29 { 2 } else { 4 });
        assert!(found.top.is_sorted_by(|a, b| a.1 >= b.1));
    }
}

#[test]
fn several_answers_share_their_prompt_and_draw_apart() {
    let mut llm = open(&demo(), LoadOptions::default());
    let prompt: Vec<u32> = (200..240).collect();
    let params = SamplingParams {
        n: 3,
        temperature: 1.0,
        seed: Some(11),
        max_tokens: Some(12),
        ignore_eos: true,
        ..SamplingParams::default()
    };
    llm.add(prompt.clone(), &params).expect("the request is sound");
    let mut answers = vec![Said::default(); 3];
    let mut cached = Vec::new();
    while llm.has_unfinished() {
        for event in llm.step().expect("the step runs") {
            let choice = event.choice;
            let token = token(event);
            cached.extend(token.prompt.as_ref().map(|prompt| (choice, prompt.num_cached_tokens)));
            answers[choice].take(token);
        }
    }
    assert_eq!(cached, [(0, 0), (1, 32), (2, 32)]);
    assert_ne!(answers[0], answers[1]);
    for (choice, said) in answers.iter().enumerate() {
        let one = SamplingParams { n: 1, seed: Some(11 + choice as u64), ..params.clone() };
        assert_eq!(
            said.ids,
            alone(&mut llm, &Asked { prompt: prompt.clone(), params: one, cancelled_after: None }).ids
        );
    }
}

#[test]
fn biases_are_added_before_anything_is_chosen() {
    let mut llm = open(&demo(), LoadOptions::default());
    let bias = BTreeMap::from([(77, 100.0)]);
    let params =
        SamplingParams { max_tokens: Some(3), logit_bias: bias, ignore_eos: true, ..SamplingParams::default() };
    let asked = Asked { prompt: vec![1, 2, 3], params, cancelled_after: None };
    assert_eq!(alone(&mut llm, &asked).ids, [77, 77, 77]);
    let beyond = SamplingParams { logit_bias: BTreeMap::from([(u32::MAX, 1.0)]), ..asked.params };
    let error = llm.add(vec![1], &beyond).expect_err("there is no such token");
    assert!(error.to_string().contains("logit_bias: expected below"), "{error}");
}

#[test]
fn a_full_queue_says_so() {
    let options = LoadOptions { max_sequences: 1, max_waiting: 2, ..LoadOptions::default() };
    let mut llm = open(&demo(), options);
    let params = SamplingParams { max_tokens: Some(2), ..SamplingParams::default() };
    let room = |llm: &Llm, answers| llm.check_room(ClientId::default(), answers);
    let error = room(&llm, 4).expect_err("one runs, and two may wait");
    assert!(matches!(error, Error::TooManyAnswers { answers: 4, most: 3 }), "{error}");
    llm.add(vec![1], &params).expect("there is room");
    room(&llm, 2).expect("one runs soon, and two may wait");
    // All answers to one request are taken, or none.
    let error = room(&llm, 3).expect_err("one too many");
    assert!(matches!(error, Error::QueueFull { waiting: 1, answers: 3, limit: 2, of_client: false }), "{error}");
    llm.add(vec![2], &SamplingParams { n: 2, ..params.clone() }).expect("there is room");
    let error = room(&llm, 1).expect_err("all places are taken");
    assert!(matches!(error, Error::QueueFull { waiting: 3, .. }), "{error}");
    while llm.has_unfinished() {
        llm.step().expect("the step runs");
    }
    nothing_is_left(&llm, "a full queue");
}

/// Steps that it takes to say `tokens`, all of which must come.
fn steps_to_say(llm: &mut Llm, prompt: &[u32], tokens: &[u32]) -> usize {
    let params = SamplingParams { ignore_eos: true, ..SamplingParams::default() };
    llm.add_constrained(prompt.to_vec(), &params, Some(forced(tokens, 0))).expect("the request is sound");
    let (mut said, mut steps, mut finished) = (Vec::new(), 0, None);
    while llm.has_unfinished() {
        steps += 1;
        for event in llm.step().expect("the step runs") {
            let token = token(event);
            said.push(token.id);
            finished = token.finished;
        }
    }
    assert_eq!((said.as_slice(), finished), (tokens, Some(FinishReason::Stop)));
    steps
}

#[test]
fn guesses_change_no_token_of_an_answer() {
    let mut llm = open(&demo(), LoadOptions::default());
    let prompt: Vec<u32> = (100..220).collect();
    // Half of it can be looked up: the prompt in pieces of 20 tokens, and as many new ones between them. How many steps
    // that saves depends on how long steps take here, so `engine::draft` counts them at a stated cost; the first guess is made,
    // and right, before its cost is known.
    let new = |piece: u32| (0..20).map(move |index| 300 + 37 * index % 200 + piece * 7 % 11);
    let half: Vec<u32> = (0..6).flat_map(|piece| (100 + 20 * piece..120 + 20 * piece).chain(new(piece))).collect();
    assert!(steps_to_say(&mut llm, &prompt, &half) < half.len());
    let other: Vec<u32> = (0..120).map(|index| 300 + (index * index * 7 + index * 13) % 500).collect();
    let mut plain = open(&demo(), LoadOptions { prompt_lookup: false, ..LoadOptions::default() });
    assert_eq!(steps_to_say(&mut plain, &prompt, &half), half.len());
    assert!(steps_to_say(&mut llm, &prompt, &other) <= other.len());
    nothing_is_left(&llm, "guesses");
}

/// Tokens of answers whose constraints may be late, with others beside them that are free. Returns each answer, and in how many
/// steps the free ones got a token.
fn beside_late_constraints(options: LoadOptions, lateness: &[usize]) -> (Vec<Said>, usize) {
    let mut llm = open(&demo(), options);
    let params = SamplingParams {
        max_tokens: Some(40),
        temperature: 1.0,
        seed: Some(4),
        logprobs: Some(2),
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let free = llm.add((1..20).collect(), &params).expect("the request is sound");
    let mut requests = vec![free];
    for (index, late) in (0..).zip(lateness) {
        let prompt: Vec<u32> = (100 + index..150 + index).collect();
        // What is said repeats the prompt, so that drafts are made and accepted.
        let tokens: Vec<u32> = (0..30).map(|token| 100 + index + token).collect();
        let added = llm.add_constrained(prompt, &params, Some(forced(&tokens, *late)));
        requests.push(added.expect("the request is sound"));
    }
    let (mut said, mut steps) = (vec![Said::default(); requests.len()], 0);
    while llm.has_unfinished() {
        let events = llm.step().expect("the step runs");
        steps += usize::from(events.iter().any(|event| event.request == free));
        for event in events {
            let index = requests.iter().position(|request| *request == event.request).expect("it was asked");
            said[index].take(token(event));
        }
    }
    nothing_is_left(&llm, "late constraints");
    (said, steps)
}

#[test]
fn a_late_constraint_delays_its_own_answer_only() {
    // With the memory of few sequences, those that sit out are preempted, too.
    for kv_cache in [KvCacheRoom::AllSequences, KvCacheRoom::Tokens(160)] {
        for prompt_lookup in [false, true] {
            let options = || LoadOptions { context: Some(128), kv_cache, prompt_lookup, ..LoadOptions::default() };
            let (prompt, _) = beside_late_constraints(options(), &[0, 0, 0]);
            let (late, steps) = beside_late_constraints(options(), &[1, 3, 17]);
            assert_eq!(prompt, late);
            if kv_cache == KvCacheRoom::AllSequences && !prompt_lookup {
                assert_eq!(steps, late[0].ids.len(), "the free answer gets a token in each step");
            }
        }
    }
}

#[test]
fn batches_of_ones_own_never_touch_an_answer() {
    let params = SamplingParams { max_tokens: Some(12), ignore_eos: true, ..SamplingParams::default() };
    let answer = |disturb: bool| {
        let mut llm = open(&demo(), LoadOptions::default());
        let alone = llm.logits(&[9; 30], true).expect("nothing runs");
        llm.add((1..40).collect(), &params).expect("the request is sound");
        let mut said = Vec::new();
        while llm.has_unfinished() {
            said.extend(llm.step().expect("the step runs").into_iter().map(|event| token(event).id));
            if disturb && llm.has_unfinished() {
                let rows = llm.logits(&[9; 30], true).expect("there is room beside the request");
                assert_eq!(rows, alone, "the request does not change them");
                let error = llm.decoder_mut().err().expect("a request is unfinished").to_string();
                assert!(error.contains("expected no unfinished request"), "{error}");
            }
        }
        said
    };
    assert_eq!(answer(true), answer(false));
}

#[test]
fn tokens_are_not_read_where_requests_leave_no_room() {
    let options = LoadOptions { context: Some(64), kv_cache: KvCacheRoom::Tokens(64), ..LoadOptions::default() };
    let mut llm = open(&demo(), options);
    llm.add((1..40).collect(), &SamplingParams { max_tokens: Some(4), ..SamplingParams::default() })
        .expect("it is sound");
    llm.step().expect("the step runs");
    let error = llm.logits(&[9; 30], true).expect_err("one block is left").to_string();
    assert_eq!(
        error,
        "tokens: expected 2 free blocks of keys and values for 30 tokens, found 1, as requests are running"
    );
    while llm.has_unfinished() {
        llm.step().expect("the step runs");
    }
    assert_eq!(llm.logits(&[9; 30], true).expect("there is room").len(), 30);
    nothing_is_left(&llm, "reading");
}

#[test]
fn vectors_are_those_of_the_last_norm() {
    let fixture = Fixture::open("qwen3");
    let mut llm = open(&fixture.source, LoadOptions::default());
    let prompt: Vec<u32> = (1..60).collect();
    let mut recorder = Recorder::new(|name: &str| name == "final_norm");
    let mut batch = Batch::default();
    let slice = SequenceSlice::new(0, 59, (0..4).collect());
    batch.push(&prompt, slice, 59);
    llm.decoder_mut().expect("nothing runs").forward(&batch, &mut recorder).expect("the batch runs");
    let normed = recorder.activations.remove(0);
    let width = normed.values.len() / 59;
    let unit = |values: Vec<f64>| {
        let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        values.into_iter().map(|value| value / length).collect::<Vec<f64>>()
    };
    let row = |row: usize| normed.values[row * width..(row + 1) * width].iter().map(|value| f64::from(*value));
    let mean = (0..width).map(|column| (0..59).map(|r| f64::from(normed.values[r * width + column])).sum()).collect();
    for (pooling, expected) in [(Pooling::Last, unit(row(58).collect())), (Pooling::Mean, unit(mean))] {
        llm.add(vec![5; 40], &SamplingParams { max_tokens: Some(20), ..SamplingParams::default() })
            .expect("it is sound");
        let request = llm.add_embedding(prompt.clone(), pooling).expect("the request is sound");
        let mut found = None;
        while llm.has_unfinished() {
            for event in llm.step().expect("the step runs").into_iter().filter(|event| event.request == request) {
                match event.output.expect("it is computed") {
                    Output::Embedding(embedding) => found = Some(embedding),
                    Output::Token(_) => panic!("nothing is written"),
                }
            }
        }
        let found = found.expect("a vector came");
        assert_eq!((found.values.len(), found.prompt.num_tokens), (width, 59));
        for (value, expected) in found.values.iter().zip(&expected) {
            assert!((f64::from(*value) - expected).abs() < 1e-5, "{pooling:?}: {value} {expected}");
        }
        nothing_is_left(&llm, "vectors");
    }
}

#[test]
fn steps_are_checked_against_standard_kernels() {
    let check = |options: LoadOptions| {
        let mut llm = open(&demo(), LoadOptions { shadow_check: 1.0, ..options });
        let params = SamplingParams { max_tokens: Some(3), ignore_eos: true, ..SamplingParams::default() };
        alone(&mut llm, &Asked { prompt: (100..130).collect(), params, cancelled_after: None });
        let mut asked = 0;
        let interrupted = llm.shadow_check(&mut || {
            asked += 1;
            asked < 2
        });
        assert_eq!(interrupted.expect("it runs"), None);
        let mut checks = Vec::new();
        while llm.has_unchecked_step() {
            checks.extend(llm.shadow_check(&mut || true).expect("it runs"));
        }
        assert_eq!(
            checks.iter().map(|check| check.tokens).collect::<Vec<_>>(),
            [30, 31, 32],
            "interrupted ones wait on"
        );
        assert!(checks.iter().all(|check| !check.disagrees && check.kl < llm.shadow_bound()), "{checks:?}");
        checks.iter().map(|check| check.kl).fold(0.0, f64::max)
    };
    let rounded = check(LoadOptions { quantize: Some(FileType::Q8_0), ..LoadOptions::default() });
    let exact =
        LoadOptions { dtype: Some(ComputeDtype::F32), quantize: Some(FileType::Q8_0), ..LoadOptions::default() };
    let exact = check(exact);
    assert!(exact < 1e-8 && rounded > 100.0 * exact, "{exact:e} {rounded:e}");
    let unchecked = open(&demo(), LoadOptions::default());
    assert!(!unchecked.has_unchecked_step());
}

#[test]
fn files_may_change_under_a_model_that_checks_its_steps() {
    let ModelSource::Directory(original) = demo() else { panic!("the demo model is a directory") };
    for truncate in [true, false] {
        let folder = tempfile::tempdir().expect("there is room");
        for file in std::fs::read_dir(&original).expect("it is there").map(|file| file.expect("it is a file").path()) {
            let name = file.file_name().expect("it has a name");
            std::fs::copy(&file, folder.path().join(name)).expect("it can be copied");
        }
        let weights = folder.path().join("model.safetensors");
        let source = ModelSource::Directory(folder.path().to_owned());
        let mut llm = open(&source, LoadOptions { shadow_check: 1.0, ..LoadOptions::default() });
        let params = SamplingParams { max_tokens: Some(2), ignore_eos: true, ..SamplingParams::default() };
        let asked = Asked { prompt: (100..130).collect(), params, cancelled_after: None };
        let said = alone(&mut llm, &asked);
        if truncate {
            std::fs::OpenOptions::new()
                .write(true)
                .open(&weights)
                .and_then(|file| file.set_len(4096))
                .expect("it shrinks");
            let error = llm.shadow_check(&mut || true).expect_err("the file is another one").to_string();
            assert!(error.contains("model.safetensors") && error.contains("written to"), "{error}");
        } else {
            std::fs::write(folder.path().join("new"), [0; 4096]).expect("there is room");
            std::fs::rename(folder.path().join("new"), &weights).expect("it is replaced");
            let check = llm.shadow_check(&mut || true).expect("the old file is still open").expect("it is checked");
            assert!(!check.disagrees, "{check:?}");
        }
        // What was copied at load goes on.
        assert_eq!(alone(&mut llm, &asked), said);
    }
}
