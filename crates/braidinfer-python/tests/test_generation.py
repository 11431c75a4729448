"""Answers: whole and token by token, one and many, and what they cost."""

import numpy
import pytest

from braidinfer import LLM, CompletionOutput, RequestOutput, SamplingParams, StreamOutput

STORY = "Once upon a time"


def test_three_lines_tell_a_story(llm):
    result = llm.generate(STORY)
    assert isinstance(result, RequestOutput) and isinstance(result.outputs[0], CompletionOutput)
    assert len(result.text.split()) > 20 and result.finish_reason == "stop"
    assert result.prompt == STORY and result.prompt_token_ids == llm.tokenize(STORY)
    # With the end token, which has no text.
    assert llm.detokenize(result.token_ids) == result.text
    assert result.token_ids[-1] in llm.eos_token_ids


def test_a_prompt_is_text_or_ids_in_any_form(llm):
    ids = llm.tokenize(STORY)
    texts = {llm.generate(prompt, max_tokens=8, temperature=0).text for prompt in (STORY, ids, tuple(ids), numpy.array(ids))}
    assert len(texts) == 1
    assert llm.generate(ids, max_tokens=1).prompt is None


def test_a_list_is_answered_in_its_order_with_parameters_for_each(llm):
    prompts = [STORY, llm.tokenize("The dog"), "A girl"]
    params = [SamplingParams(max_tokens=3), {"max_tokens": 5}, SamplingParams(max_tokens=4, n=2)]
    results = llm.generate(prompts, params, temperature=0)
    assert [len(result.token_ids) for result in results] == [3, 5, 4]
    assert [len(result.outputs) for result in results] == [1, 1, 2]
    alone = [llm.generate(prompt, max_tokens=count, temperature=0).token_ids for prompt, count in zip(prompts, (3, 5, 4))]
    assert [result.token_ids for result in results] == alone
    assert results[2].outputs[1].index == 1 and results[2].outputs[1].token_ids == alone[2]
    assert llm.generate([]) == []


def test_a_seed_repeats_choices_and_another_does_not(llm):
    def told(seed):
        return llm.generate(STORY, temperature=1.0, max_tokens=40, seed=seed).text

    assert told(1) == told(1) and told(1) != told(2) and told(-1) == told(2**64 - 1)


def test_a_stream_is_the_answer_in_parts(llm):
    whole = llm.generate(STORY, max_tokens=30, temperature=0)
    tokens = list(llm.stream(STORY, max_tokens=30, temperature=0))
    assert all(isinstance(token, StreamOutput) for token in tokens)
    assert "".join(map(str, tokens)) == whole.text
    assert [token.token_id for token in tokens] == whole.token_ids
    assert [token.finish_reason for token in tokens] == [None] * 29 + ["length"]


def test_a_stream_of_several_says_whose_token_it_is(llm):
    whole = llm.generate([STORY, "The dog"], max_tokens=6, n=2, seed=3, temperature=1.0)
    parts = {}
    for token in llm.stream([STORY, "The dog"], max_tokens=6, n=2, seed=3, temperature=1.0):
        parts.setdefault((token.prompt_index, token.index), []).append(token.token_id)
    assert parts == {(i, j): whole[i].outputs[j].token_ids for i in range(2) for j in range(2)}


def test_a_closed_stream_ends_and_makes_room(llm):
    narrow = LLM(max_sequences=1)
    with narrow.stream(STORY, ignore_eos=True) as stream:
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    # One that is forgotten, too.
    next(narrow.stream(STORY, ignore_eos=True))
    assert narrow.generate(STORY, max_tokens=2).finish_reason == "length"


def test_stop_texts_and_biases_are_obeyed(llm):
    text = llm.generate(STORY, max_tokens=60, temperature=0).text
    word = text.split()[5]
    assert llm.generate(STORY, max_tokens=60, temperature=0, stop=word).text == text[: text.index(word)]
    first = llm.generate(STORY, max_tokens=1, temperature=0).token_ids[0]
    assert llm.generate(STORY, max_tokens=1, temperature=0, logit_bias={first: -100}).token_ids != [first]
    assert llm.generate(STORY, max_tokens=9, temperature=0, stop_token_ids=[first]).token_ids == [first]


def test_logprobs_belong_to_tokens(llm):
    result = llm.generate(STORY, max_tokens=5, temperature=0, logprobs=3, prompt_logprobs=0)
    of_answer = result.outputs[0].logprobs
    assert [logprob.token_id for logprob in of_answer] == result.token_ids
    assert all(logprob.top[0] == (logprob.token_id, logprob.logprob) and len(logprob.top) == 3 for logprob in of_answer)
    assert [logprob.token_id for logprob in result.prompt_logprobs] == result.prompt_token_ids[1:]


def test_progress_counts_answers(llm):
    seen = []
    llm.generate([STORY] * 5, max_tokens=3, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5) and [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_embeddings_are_rows_of_length_one(llm):
    rows = llm.embed([STORY, "The dog", llm.tokenize(STORY)])
    assert rows.shape == (3, llm.hidden_size) and rows.dtype == numpy.float32
    assert numpy.allclose(numpy.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert numpy.array_equal(rows[0], rows[2]) and not numpy.array_equal(rows[0], rows[1])
    assert numpy.array_equal(llm.embed(STORY), rows[0])
    assert not numpy.array_equal(llm.embed(STORY, pooling="mean"), rows[0])
    assert llm.embed([]).shape == (0, llm.hidden_size)


def test_scores_and_logits_tell_the_same(llm):
    ids = llm.tokenize("Once upon a time, there was a dog.")
    logits = llm.logits(ids, all_positions=True).astype(numpy.float64)
    assert logits.shape == (len(ids), llm.vocab_size)
    assert numpy.array_equal(llm.logits(ids), llm.logits(ids, all_positions=True)[-1])
    logprobs = logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))
    expected = [logprobs[position, token] for position, token in enumerate(ids[1:])]
    score = llm.score(ids)
    assert score.token_ids == ids[1:] and numpy.allclose(score.logprobs, expected, atol=1e-4)
    assert score.logprob == pytest.approx(sum(expected), abs=1e-3)
    rest = llm.score(ids[:3], ids[3:])
    assert rest.token_ids == ids[3:] and numpy.allclose(rest.logprobs, expected[2:], atol=1e-4)


def test_a_continuation_is_greedy_if_the_model_would_write_it(llm):
    text = llm.generate(STORY, max_tokens=5, temperature=0)
    own, other = llm.score([STORY, STORY], [text.token_ids, [5, 6]])
    assert own.is_greedy and not other.is_greedy and own.logprob > other.logprob
    assert llm.score([]) == []


def test_models_give_back_what_they_took(llm):
    model = LLM()
    stream = model.stream(STORY, ignore_eos=True)
    next(stream)
    model.close()
    model.close()
    with pytest.raises(Exception, match="ended"):
        list(stream)
    with pytest.raises(RuntimeError, match="closed"):
        model.generate(STORY)
    with LLM() as model:
        model.generate(STORY, max_tokens=1)
    with pytest.raises(RuntimeError, match="closed"):
        model.tokenize(STORY)
