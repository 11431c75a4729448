//! A model on its own thread: the answers of [`Llm::generate`], for callers that wait and for callers that do not; and what
//! becomes of answers that nobody wants any more.
//!
//! Where the order of things matters, an observer holds the engine at a token until the test has done its part.

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::support::Fixture;
use braidinfer::compat::Precision;
use braidinfer::engine::{ClientId, EngineStats, Pooling, StepStats};
use braidinfer::executor::Kernels;
use braidinfer::handle::{
    AnswerEnd, EngineObserver, OutputStream, RequestError, RequestOutput, SubmitError, Task, TokenTimes,
};
use braidinfer::kernels::NumericLevel;
use braidinfer::model::ModelSource;
use braidinfer::model::quantization::FileType;
use braidinfer::{
    Completion, Error, FinishReason, Handle, KvCacheRoom, Llm, LoadOptions, Output, Prompt, SamplingParams,
    ShadowCheck, Token,
};
use tokio::runtime;

const STORY: &str = "Once upon a time";

fn open(source: &ModelSource, options: LoadOptions) -> Llm {
    let options = LoadOptions { kernels: Kernels::Standard, ..options };
    Llm::open(source, &options, &|_, _| {}).unwrap_or_else(|error| panic!("{}: {error}", source.label()))
}

fn demo_source() -> ModelSource {
    ModelSource::Directory(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../braidinfer-cli/demo-model"))
}

fn demo() -> Llm {
    open(&demo_source(), LoadOptions::default())
}

/// A model that has room for one answer at a time.
fn narrow() -> Llm {
    open(&demo_source(), LoadOptions { max_sequences: 1, max_waiting: 1, ..LoadOptions::default() })
}

fn greedy(max_tokens: usize) -> SamplingParams {
    SamplingParams { max_tokens: Some(max_tokens), ignore_eos: true, ..SamplingParams::default() }
}

fn generate(params: &SamplingParams) -> Task {
    Task::generate(params.clone())
}

fn ids(text: &str, llm: &Llm) -> Vec<u32> {
    llm.encode(&Prompt::Text(text.into())).expect("the model has a tokenizer")
}

/// What a stream says of one answer.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    finished: Option<FinishReason>,
}

impl From<&Completion> for Answer {
    fn from(completion: &Completion) -> Self {
        let Completion { ids, text, finish_reason, .. } = completion;
        Self { ids: ids.clone(), text: text.clone(), finished: Some(*finish_reason) }
    }
}

fn push(answers: &mut [Answer], output: RequestOutput) {
    let Output::Token(Token { id, text, finished, .. }) = output.output.expect("the answer does not fail") else {
        panic!("no vector was asked for");
    };
    let answer = &mut answers[output.choice];
    answer.ids.push(id);
    answer.text += &text;
    answer.finished = finished;
}

fn read(mut stream: OutputStream, count: usize) -> Vec<Answer> {
    let mut answers: Vec<Answer> = (0..count).map(|_| Answer::default()).collect();
    while let Some(output) = stream.next_blocking() {
        push(&mut answers, output);
    }
    answers
}

async fn read_async(mut stream: OutputStream, count: usize) -> Vec<Answer> {
    let mut answers: Vec<Answer> = (0..count).map(|_| Answer::default()).collect();
    while let Some(output) = stream.next().await {
        push(&mut answers, output);
    }
    answers
}

/// The greedy answer to [`STORY`].
fn alone(llm: &mut Llm, max_tokens: usize) -> Answer {
    Answer::from(&llm.generate(&[Prompt::Text(STORY.into())], &greedy(max_tokens)).expect("the prompt runs")[0])
}

fn submit(handle: &Handle, prompt: &[u32], max_tokens: usize) -> OutputStream {
    let submitted = handle.submit_blocking(vec![prompt.to_vec()], generate(&greedy(max_tokens)), Instant::now());
    submitted.expect("there is room")
}

/// The errors that a stream ends with, by answer, after whatever tokens.
fn errors(mut stream: OutputStream) -> Vec<(usize, RequestError)> {
    let mut errors = Vec::new();
    while let Some(RequestOutput { choice, output }) = stream.next_blocking() {
        errors.extend(output.err().map(|error| (choice, error)));
    }
    errors
}

/// Holds the engine at each token until the test lets it go on, and keeps what it is told.
struct Gate {
    reached: Sender<()>,
    opened: Mutex<Receiver<()>>,
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    times: Vec<TokenTimes>,
    ended: Vec<(AnswerEnd, usize)>,
    /// In all steps, whether anyone reads them or not.
    written_tokens: usize,
}

impl EngineObserver for Gate {
    fn step(&self, step: &StepStats) {
        self.told.lock().expect("nothing panicked").written_tokens += step.written_tokens;
    }

    fn token(&self, _: &Token, times: &TokenTimes) {
        self.told.lock().expect("nothing panicked").times.push(*times);
        // After the test has let the engine go for good, both fail at once.
        let _ = self.reached.send(());
        let _ = self.opened.lock().expect("nothing panicked").recv();
    }

    fn answers_ended(&self, end: AnswerEnd, answers: usize) {
        self.told.lock().expect("nothing panicked").ended.push((end, answers));
    }
}

/// The test's side of a [`Gate`].
struct Keeper {
    reached: Receiver<()>,
    /// Dropped to let the engine go for good.
    open: Sender<()>,
    told: Arc<Mutex<Told>>,
}

fn gate() -> (Arc<Gate>, Keeper) {
    let (reached, at_token) = channel();
    let (open, opened) = channel();
    let told = Arc::new(Mutex::new(Told::default()));
    let gate = Gate { reached, opened: Mutex::new(opened), told: Arc::clone(&told) };
    (Arc::new(gate), Keeper { reached: at_token, open, told })
}

/// Starts a future, and leaves it at the first thing that it waits for.
fn begin<F: Future>(future: std::pin::Pin<&mut F>) {
    let started = future.poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(started, Poll::Pending), "the engine is held and cannot have answered");
}

fn block_on<F: Future>(future: F) -> F::Output {
    runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

#[test]
fn waiting_and_not_waiting_callers_get_the_tokens_of_generate() {
    let mut llm = demo();
    let texts = [STORY, "The dragon", "Tom had a"];
    let params = SamplingParams { temperature: 0.8, seed: Some(5), n: 2, max_tokens: Some(40), ..greedy(40) };
    let prompts: Vec<Prompt> = texts.iter().map(|text| Prompt::Text((*text).into())).collect();
    let expected: Vec<Answer> =
        llm.generate(&prompts, &params).expect("the prompts run").iter().map(Answer::from).collect();
    let prompts: Vec<Vec<u32>> = texts.iter().map(|text| ids(text, &llm)).collect();
    let handle = Handle::start(llm, Arc::new(())).expect("a thread");
    let blocking = handle.submit_blocking(prompts.clone(), generate(&params), Instant::now()).expect("there is room");
    assert_eq!(read(blocking, 6), expected);
    let answers = block_on(async {
        let stream = handle.submit(prompts, generate(&params), Instant::now()).await.expect("there is room");
        read_async(stream, 6).await
    });
    assert_eq!(answers, expected);
}

#[test]
fn vectors_come_one_for_each_prompt() {
    let llm = demo();
    let prompts = vec![ids(STORY, &llm), ids("The dragon", &llm)];
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let handle = Handle::start(llm, Arc::new(())).expect("a thread");
    let mut stream = handle
        .submit_blocking(prompts, Task::Embed { pooling: Pooling::Last, adapter: None }, Instant::now())
        .expect("there is room");
    let mut found = vec![0; 2];
    while let Some(output) = stream.next_blocking() {
        assert!(output.is_last());
        let Ok(Output::Embedding(embedding)) = output.output else { panic!("only vectors were asked for") };
        found[output.choice] += embedding.prompt.num_tokens;
    }
    assert_eq!(found, lengths);
}

#[test]
fn each_prompt_can_have_a_task_of_its_own() {
    let mut llm = demo();
    let texts = [STORY, "The dragon"];
    let params = [SamplingParams { n: 2, ..greedy(4) }, greedy(7)];
    let mut expected = Vec::new();
    for (text, params) in texts.iter().zip(&params) {
        let completions = llm.generate(&[Prompt::Text((*text).into())], params).expect("the prompt runs");
        expected.extend(completions.iter().map(Answer::from));
    }
    let requests = texts.iter().zip(&params).map(|(text, params)| (ids(text, &llm), generate(params))).collect();
    let handle = Handle::start(llm, Arc::new(())).expect("a thread");
    let stream = block_on(handle.submit_each(requests, Instant::now())).expect("there is room");
    assert_eq!(read(stream, 3), expected);
}

#[test]
fn calls_come_between_steps_and_change_no_answer() {
    let mut llm = demo();
    let expected = alone(&mut llm, 12);
    let prompt = ids(STORY, &llm);
    let logits = llm.logits(&prompt, false).expect("the prompt runs");
    let (gate, keeper) = gate();
    let handle = Handle::start(llm, gate).expect("a thread");
    let mut stream = submit(&handle, &prompt, 12);
    keeper.reached.recv().expect("a first token");
    assert!(stream.try_next().is_none(), "the engine is held before it sends the token");
    drop(keeper.open);
    let called = block_on(handle.call(move |llm| llm.logits(&prompt, false))).expect("the engine runs");
    assert_eq!(called.expect("the prompt runs"), logits);
    let mut answers = [Answer::default()];
    push(&mut answers, stream.try_next().expect("the first token came before the call"));
    while let Some(output) = stream.next_blocking() {
        push(&mut answers, output);
    }
    assert_eq!(answers, [expected]);
    handle.end_and_wait();
}

#[test]
fn a_dropped_stream_frees_its_room_for_others() {
    let options = LoadOptions { max_sequences: 1, kv_cache: KvCacheRoom::Tokens(256), ..LoadOptions::default() };
    let mut llm = open(&demo_source(), LoadOptions { context: Some(256), ..options });
    let expected = alone(&mut llm, 20);
    let prompt = ids(STORY, &llm);
    let (gate, keeper) = gate();
    let handle = Handle::start(llm, gate).expect("a thread");
    let unwanted = submit(&handle, &prompt, 200);
    keeper.reached.recv().expect("a first token");
    drop(unwanted);
    drop(keeper.open);
    assert_eq!(read(submit(&handle, &prompt, 20), 1), [expected]);
    let told = keeper.told.lock().expect("nothing panicked");
    assert_eq!(told.written_tokens, 1 + 20, "the dropped answer has one token");
    let finished = AnswerEnd::Finished(FinishReason::Length);
    assert_eq!(told.ended, [(AnswerEnd::Cancelled, 1), (finished, 1)]);
}

#[test]
fn a_submission_that_nobody_waits_for_is_cancelled() {
    let mut llm = demo();
    let expected = alone(&mut llm, 5);
    let prompt = ids(STORY, &llm);
    let (gate, keeper) = gate();
    let handle = Handle::start(llm, gate).expect("a thread");
    let first = submit(&handle, &prompt, 5);
    keeper.reached.recv().expect("a first token");
    {
        let mut given_up = pin!(handle.submit(vec![prompt.clone()], generate(&greedy(200)), Instant::now()));
        begin(given_up.as_mut());
    }
    drop(keeper.open);
    assert_eq!(read(first, 1), [expected]);
    assert_eq!(keeper.told.lock().expect("nothing panicked").written_tokens, 5, "only one was answered");
}

#[test]
fn cancelling_ends_each_answer_of_one_stream_with_an_error() {
    let mut llm = demo();
    let expected = alone(&mut llm, 30);
    let prompt = ids(STORY, &llm);
    let (gate, keeper) = gate();
    let handle = Handle::start(llm, gate).expect("a thread");
    let task = generate(&SamplingParams { n: 2, ..greedy(100) });
    let cancelled = handle.submit_blocking(vec![prompt.clone(); 2], task, Instant::now()).expect("there is room");
    keeper.reached.recv().expect("a first token");
    let mut submitting = pin!(handle.submit(vec![prompt], generate(&greedy(30)), Instant::now()));
    begin(submitting.as_mut());
    handle.cancel(cancelled.id());
    drop(keeper.open);
    let other = block_on(submitting).expect("there is room");
    let ends = errors(cancelled);
    assert_eq!(ends.iter().map(|(choice, _)| *choice).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(ends.iter().all(|(_, error)| matches!(error, RequestError::Cancelled)), "{ends:?}");
    assert_eq!(read(other, 1), [expected], "the other stream goes on");
}

#[test]
fn two_models_answer_at_once() {
    let mut llm = demo();
    let expected = alone(&mut llm, 10);
    let prompt = ids(STORY, &llm);
    let fixture = Fixture::open("llama");
    let (gate, keeper) = gate();
    let held = Handle::start(llm, gate).expect("a thread");
    let free = Handle::start(open(&fixture.source, LoadOptions::default()), Arc::new(())).expect("a thread");
    let slow = submit(&held, &prompt, 10);
    keeper.reached.recv().expect("a first token");
    for expected in &fixture.prompts {
        let answers = read(submit(&free, &expected.ids, expected.greedy.len()), 1);
        assert_eq!(answers[0].ids, expected.greedy, "while the other model is in a step");
    }
    drop(keeper.open);
    assert_eq!(read(slow, 1), [expected]);
}

#[test]
fn two_models_with_other_threads_and_precisions_answer_at_once() {
    let load = |threads, precision, quantize| {
        let options = LoadOptions { threads: Some(threads), precision, quantize, ..LoadOptions::default() };
        Llm::open(&demo_source(), &options, &|_, _| {}).expect("the demo model opens")
    };
    let models = || [load(1, Precision::Exact, None), load(3, Precision::Fast, Some(FileType::Q8_0))];
    let about = |llm: &Llm| {
        let report = llm.decoder().report();
        (report.threads, llm.threads().count(), report.main_level)
    };
    assert_eq!(models().each_ref().map(about), [(1, 1, NumericLevel::F32), (3, 3, NumericLevel::Int8)]);
    let expected = models().map(|mut llm| alone(&mut llm, 40));
    let prompt = ids(STORY, &models()[0]);
    let (mut handles, mut keepers) = (Vec::new(), Vec::new());
    for llm in models() {
        let (gate, keeper) = gate();
        handles.push(Handle::start(llm, gate).expect("a thread can be had"));
        keepers.push(keeper);
    }
    let streams: Vec<OutputStream> = handles.iter().map(|handle| submit(handle, &prompt, 40)).collect();
    // Both have written a token before either goes on.
    keepers.iter().for_each(|keeper| keeper.reached.recv().expect("a first token"));
    drop(keepers);
    for (stream, expected) in streams.into_iter().zip(expected) {
        assert_eq!(read(stream, 1), [expected]);
    }
}

#[test]
fn a_full_queue_takes_no_prompt() {
    let llm = narrow();
    let prompt = ids(STORY, &llm);
    let (gate, keeper) = gate();
    let handle = Handle::start(llm, gate).expect("a thread");
    let two = vec![prompt.clone(); 2];
    let first = handle.submit_blocking(two.clone(), generate(&greedy(10)), Instant::now()).expect("there is room");
    keeper.reached.recv().expect("a first token, while the second prompt waits");
    let mut submitting = pin!(handle.submit(two, generate(&greedy(10)), Instant::now()));
    begin(submitting.as_mut());
    drop(keeper.open);
    let refused = block_on(submitting).expect_err("one answer waits already");
    assert!(matches!(refused, SubmitError::Refused(Error::QueueFull { waiting: 1, .. })), "{refused}");
    read(first, 2);
    assert_eq!(keeper.told.lock().expect("nothing panicked").written_tokens, 2 * 10);
}

#[test]
fn one_prompt_that_cannot_be_run_refuses_all() {
    let llm = demo();
    let (prompt, too_long) = (ids(STORY, &llm), vec![1; llm.context() + 1]);
    let (gate, keeper) = gate();
    drop(keeper.open);
    let handle = Handle::start(llm, gate).expect("a thread");
    let prompts = vec![prompt.clone(), too_long];
    let refused = handle.submit_blocking(prompts, generate(&greedy(10)), Instant::now()).expect_err("one is too long");
    assert!(matches!(refused, SubmitError::Refused(Error::PromptTooLong { .. })), "{refused}");
    read(submit(&handle, &prompt, 7), 1);
    assert_eq!(keeper.told.lock().expect("nothing panicked").written_tokens, 7, "the first prompt was not run");
}

#[test]
fn ending_all_tells_every_answer_and_takes_new_ones() {
    let mut llm = narrow();
    let expected = alone(&mut llm, 10);
    let prompt = ids(STORY, &llm);
    let (gate, keeper) = gate();
    let handle = Handle::start(llm, gate).expect("a thread");
    let two = vec![prompt.clone(); 2];
    let stream = handle.submit_blocking(two, generate(&greedy(100)), Instant::now()).expect("there is room");
    keeper.reached.recv().expect("a first token");
    handle.end_all();
    drop(keeper.open);
    let ends = errors(stream);
    assert!(matches!(ends[..], [(0, RequestError::ShuttingDown), (1, RequestError::ShuttingDown)]), "{ends:?}");
    assert_eq!(keeper.told.lock().expect("nothing panicked").ended, [(AnswerEnd::Failed, 1), (AnswerEnd::Failed, 1)]);
    assert_eq!(read(submit(&handle, &prompt, 10), 1), [expected]);
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let mut llm = demo();
    let expected = alone(&mut llm, 10);
    let prompt = ids(STORY, &llm);
    let (gate, keeper) = gate();
    let handle = Handle::start(llm, gate).expect("a thread");
    let clone = handle.clone();
    drop(handle);
    assert!(clone.is_alive());
    let whole = submit(&clone, &prompt, 10);
    (0..10).for_each(|_| {
        keeper.reached.recv().expect("a token");
        keeper.open.send(()).expect("the engine waits");
    });
    assert_eq!(read(whole, 1), [expected]);
    let unfinished = submit(&clone, &prompt, 100);
    keeper.reached.recv().expect("a first token");
    drop(clone);
    drop(keeper.open);
    let ends = errors(unfinished);
    assert!(matches!(ends[..], [(0, RequestError::ShuttingDown)]), "{ends:?}");
    // The thread owned the observer, and with it the other end.
    keeper.reached.iter().for_each(drop);
}

/// An observer that breaks the engine.
struct Broken;

impl EngineObserver for Broken {
    fn step(&self, _: &StepStats) {
        panic!("the engine breaks here, as the test wants it");
    }
}

#[test]
fn a_broken_engine_ends_every_answer() {
    let llm = demo();
    let prompts = vec![ids(STORY, &llm); 2];
    let handle = Handle::start(llm, Arc::new(Broken)).expect("a thread");
    let stream = handle.submit_blocking(prompts.clone(), generate(&greedy(10)), Instant::now()).expect("there is room");
    let ends = errors(stream);
    assert!(matches!(ends[..], [(0, RequestError::EngineStopped), (1, RequestError::EngineStopped)]), "{ends:?}");
    let refused = handle.submit_blocking(prompts, generate(&greedy(10)), Instant::now()).expect_err("it is broken");
    assert!(matches!(refused, SubmitError::EngineStopped), "{refused}");
}

#[test]
fn times_count_the_tokens_of_each_answer() {
    let llm = demo();
    let prompt = ids(STORY, &llm);
    let (gate, keeper) = gate();
    drop(keeper.open);
    let handle = Handle::start(llm, gate).expect("a thread");
    read(submit(&handle, &prompt, 5), 1);
    let told = keeper.told.lock().expect("nothing panicked");
    assert_eq!(told.times.iter().map(|times| times.index).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(told.times[0].since_first_token.is_zero());
    assert!(told.times.windows(2).all(|pair| pair[0].since_arrival <= pair[1].since_arrival));
    assert!(told.times.iter().all(|times| times.since_first_token <= times.since_arrival));
}

/// Passes on what is said of checked steps.
struct Checks(Sender<(ShadowCheck, EngineStats)>, Mutex<Option<EngineStats>>);

impl EngineObserver for Checks {
    fn engine_stats(&self, stats: &EngineStats) {
        *self.1.lock().expect("nothing panicked") = Some(*stats);
    }

    fn shadow_checked(&self, check: &ShadowCheck, _: f64) {
        let stats = self.1.lock().expect("nothing panicked").expect("a step was run before");
        let _ = self.0.send((*check, stats));
    }
}

#[test]
fn steps_are_checked_while_there_is_nothing_else_to_do() {
    let options = LoadOptions { kernels: Kernels::Fused, force: true, shadow_check: 1.0, ..LoadOptions::default() };
    let llm = Llm::open(&demo_source(), &options, &|_, _| {}).expect("the demo model is whole");
    let prompt = ids(STORY, &llm);
    let (sender, checks) = channel();
    let handle = Handle::start(llm, Arc::new(Checks(sender, Mutex::new(None)))).expect("a thread");
    read(submit(&handle, &prompt, 3), 1);
    let (check, stats) = checks.recv().expect("a step is checked");
    assert!(check.kl.is_finite() && check.tokens >= prompt.len());
    assert_eq!(stats.running + stats.waiting, 0);
    drop(handle);
    // What is not checked by then is left.
    checks.iter().for_each(drop);
}

#[test]
fn streams_that_nobody_reads_end_when_they_hold_too_much() {
    let llm = demo();
    let prompt = ids(STORY, &llm);
    let handle = Handle::start(llm, Arc::new(())).expect("a thread");
    let unread = submit(&handle.with_most_unread(2000), &prompt, 400);
    // The engine runs both in the same steps.
    read(submit(&handle, &prompt, 300), 1);
    let ends = errors(unread);
    assert!(matches!(ends[..], [(0, RequestError::Unread { most: 2000 })]), "{ends:?}");
}

#[test]
fn clients_take_turns() {
    let llm = open(&demo_source(), LoadOptions { max_sequences: 2, ..LoadOptions::default() });
    let prompt = ids(STORY, &llm);
    let handle = Handle::start(llm, Arc::new(())).expect("a thread");
    let many = vec![prompt.clone(); 200];
    let mut many = handle
        .for_client(ClientId(1))
        .submit_blocking(many, generate(&greedy(100)), Instant::now())
        .expect("there is room");
    assert!(many.next_blocking().is_some(), "the first answer has begun");
    read(submit(&handle.for_client(ClientId(2)), &prompt, 20), 1);
    let mut ended = 0;
    handle.cancel(many.id());
    while let Some(output) = many.next_blocking() {
        ended += usize::from(matches!(output.output, Ok(Output::Token(Token { finished: Some(_), .. }))));
    }
    assert!(ended < 10, "{ended} of 200 answers came before the other client's");
}
