//! Forms that answers are held to.

use braidinfer::engine::{ClientId, ConstraintFactory};
use braidinfer::{AnswerForm, CancelFlag};

use crate::http::ApiError;
use crate::models::{FormSlot, Lease};

/// A form of the answer, and the request field that asks for it.
pub type RequestedForm = (AnswerForm, &'static str);

/// The constraint for a requested form, and the slot that it needs until the answers have ended, unless it was compiled before.
///
/// Compiled on a blocking thread, because large forms take long; ended if the client leaves.
pub async fn constraint(
    served: &Lease,
    requested: Option<RequestedForm>,
    client: ClientId,
) -> Result<Option<(ConstraintFactory, Option<FormSlot>)>, ApiError> {
    let Some((form, field)) = requested else { return Ok(None) };
    let looked = served.run_blocking(move |served| Ok((served.is_compiled(&form), form))).await;
    let (is_compiled, form) = looked?;
    let slot = match is_compiled {
        true => None,
        false => {
            let slot = served.form_slots.acquire(client).await;
            Some(slot.ok_or_else(|| ApiError::not_ready("the server stops"))?)
        }
    };
    let cancel = CancelFlag::default();
    let _wanted = cancel.cancel_on_drop();
    let constraint = served.run_blocking(move |served| served.constraint(&form, field, &cancel)).await?;
    Ok(Some((constraint, slot)))
}
