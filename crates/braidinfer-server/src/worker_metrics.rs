//! Metrics of the worker processes for untrusted input.

use std::fmt;
use std::sync::{Arc, OnceLock};

use braidinfer::WorkerProgram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads the counts of a program's workers whenever metrics are asked for, once it is known.
#[derive(Debug)]
pub struct WorkerMetrics(pub Arc<OnceLock<WorkerProgram>>);

impl Collector for WorkerMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(worker) = self.0.get() else { return Ok(()) };
        let stats = worker.stats();
        let alive = ConstGauge::new(stats.alive as i64);
        let help = "Worker processes for templates and forms of answers";
        alive.encode(encoder.encode_descriptor("braidinfer_workers", help, None, alive.metric_type())?)?;
        let started = ConstCounter::new(stats.started as u64);
        let help = "Worker processes that were started";
        started.encode(encoder.encode_descriptor(
            "braidinfer_workers_started",
            help,
            None,
            started.metric_type(),
        )?)?;
        let help = "Worker processes that ended because of a limit, or in another way that was not meant";
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut family = encoder.encode_descriptor("braidinfer_workers_ended", help, None, kind)?;
        for (reason, count) in [("time", stats.out_of_time), ("memory", stats.out_of_memory), ("crash", stats.crashed)]
        {
            ConstCounter::new(count as u64).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}
