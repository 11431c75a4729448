//! Models whose layers are computed by several processes, and the engine's way to these, through Python.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

use braidinfer::PipelinePlan;
use braidinfer::executor::{Stage as Layers, StageConnection};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyEOFError, PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::engine::LoadCallback;
use crate::errors::{ModelError, bad_argument, exception};
use crate::options::{Options, source};
use crate::waiting::Bell;

/// What all stages of a pipeline agree on, as JSON.
#[pyfunction]
pub fn pipeline_plan(py: Python<'_>, model: Option<PathBuf>, options: Options) -> PyResult<String> {
    let options = options.load_options()?;
    let plan = LoadCallback::new(None).run(py, move |_| PipelinePlan::new(&source(model)?, &options))?;
    serde_json::to_string(&plan).map_err(|error| ModelError::new_err(error.to_string()))
}

/// Splits the layers of a plan among stages: of each the first layer, the one after its last, and the bytes of its weights.
#[pyfunction]
pub fn split_layers(plan: &str, stages: usize) -> PyResult<Vec<(usize, usize, usize)>> {
    let plan = parsed(plan)?;
    let ranges = plan.split(stages).map_err(|error| exception(&error))?;
    Ok(ranges.into_iter().map(|range| (range.start, range.end, plan.weight_bytes(range))).collect())
}

/// A plan that was JSON.
pub fn parsed(plan: &str) -> PyResult<PipelinePlan> {
    serde_json::from_str(plan).map_err(|error| bad_argument("plan", "one that `pipeline_plan` made", error))
}

/// Some consecutive layers of a model.
#[pyclass(frozen, module = "braidinfer._braidinfer")]
pub struct Stage {
    layers: Mutex<Layers>,
    /// Tokens whose keys and values there is memory for.
    #[pyo3(get)]
    fitting_tokens: usize,
}

#[pymethods]
impl Stage {
    #[new]
    fn new(
        py: Python<'_>,
        model: Option<PathBuf>,
        options: Options,
        plan: &str,
        layers: (usize, usize),
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let (options, plan) = (options.load_options()?, parsed(plan)?);
        let layers = layers.0..layers.1;
        let layers = LoadCallback::new(progress)
            .run(py, move |progress| Layers::open(&source(model)?, &options, &plan, layers, progress))?;
        Ok(Self { fitting_tokens: layers.fitting_tokens(), layers: Mutex::new(layers) })
    }

    /// Computes the layers: takes and returns the residual stream of all tokens, side by side.
    fn run<'py>(
        &self,
        py: Python<'py>,
        step: &[u8],
        hidden: PyReadonlyArray1<'py, f32>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let hidden = hidden.as_slice().map_err(|error| bad_argument("hidden", "an array without gaps", error))?;
        let run = || self.layers.lock().unwrap_or_else(PoisonError::into_inner).run(step, hidden);
        let hidden = py.detach(run).map_err(|error| exception(&error))?;
        Ok(PyArray1::from_vec(py, hidden))
    }
}

/// A step for stages: what is to be done, and the residual stream.
type StageInput = (Vec<u8>, Vec<f32>);

/// The residual stream after the last stage, or why there is none.
type StageResult = Result<Vec<f32>, String>;

/// The engine's side of the way to the stages.
struct ToPython {
    /// `None` once the engine is gone.
    steps: Option<Sender<StageInput>>,
    results: Receiver<StageResult>,
    waker: Waker,
}

/// A way from the engine to stages, and the work that Python does at its other end.
pub fn connection() -> PyResult<(Box<dyn StageConnection>, StageWork)> {
    let bell = Bell::new().map_err(|error| PyOSError::new_err(format!("a socket for stages: {error}")))?;
    let ((steps, taken), (answers, results)) = (channel(), channel());
    let connection = ToPython { steps: Some(steps), results, waker: bell.waker().clone() };
    let work = StageWork { steps: Mutex::new(taken), answers: Mutex::new(Some(answers)), bell };
    Ok((Box::new(connection), work))
}

impl StageConnection for ToPython {
    fn run(&mut self, step: Vec<u8>, hidden: Vec<f32>) -> StageResult {
        let ended = || "the thread that reaches the stages of the pipeline has ended".to_owned();
        self.steps.as_ref().and_then(|steps| steps.send((step, hidden)).ok()).ok_or_else(ended)?;
        self.waker.wake_by_ref();
        self.results.recv().map_err(|_| ended())?
    }
}

impl Drop for ToPython {
    fn drop(&mut self) {
        self.steps = None;
        self.waker.wake_by_ref();
    }
}

type TakenStep<'py> = (Bound<'py, PyBytes>, Bound<'py, PyArray1<f32>>);

/// The work of one thread of Python: to let stages compute the steps of an engine.
#[pyclass(frozen, module = "braidinfer._braidinfer")]
pub struct StageWork {
    steps: Mutex<Receiver<StageInput>>,
    answers: Mutex<Option<Sender<StageResult>>>,
    bell: Bell,
}

#[pymethods]
impl StageWork {
    /// The number of a socket that becomes readable when there is a step, or the engine is gone.
    fn fileno(&self) -> i32 {
        self.bell.fileno()
    }

    /// The next step and the residual stream, without waiting; None if there is none yet. Raises `EOFError` once the engine is gone.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<TakenStep<'py>>> {
        self.bell.silence();
        match self.steps.lock().unwrap_or_else(PoisonError::into_inner).try_recv() {
            Ok((step, hidden)) => Ok(Some((PyBytes::new(py, &step), PyArray1::from_vec(py, hidden)))),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(PyEOFError::new_err("the engine of the pipeline is gone")),
        }
    }

    /// Gives the engine the residual stream after the last layer.
    fn done(&self, hidden: PyReadonlyArray1<'_, f32>) -> PyResult<()> {
        let values = hidden.as_slice().map_err(|error| bad_argument("hidden", "an array without gaps", error))?;
        self.answer(Ok(values.to_vec()))
    }

    /// Tells the engine that the step failed, and why.
    fn failed(&self, message: String) -> PyResult<()> {
        self.answer(Err(message))
    }

    /// Ends the work: steps fail from now on.
    fn close(&self) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl StageWork {
    fn answer(&self, result: StageResult) -> PyResult<()> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = answers.as_ref().and_then(|answers| answers.send(result).ok());
        sent.ok_or_else(|| PyRuntimeError::new_err("the engine does not wait for a step"))
    }
}
