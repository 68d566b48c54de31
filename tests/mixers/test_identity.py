"""The identity of a configuration: a new field leaves it alone, a changed default does not."""

from typing import Annotated

from pydantic import BaseModel, create_model

from mixers.identity import INCIDENTAL, Neutral, compact, completed, identity


class Inner(BaseModel):
    width: int = 4


class Before(BaseModel):
    rate: float = 0.1
    threads: Annotated[int, INCIDENTAL] = 1
    inner: Inner = Inner()
    parts: list[Inner] = []


def with_new_field(neutral: str, default: str) -> type[BaseModel]:
    return create_model("After", __base__=Before, start=(Annotated[str, Neutral(neutral)], default))


def test_every_field_counts_but_those_that_change_nothing_of_what_is_made() -> None:
    assert identity(Before()) == {"rate": 0.1, "inner": {"width": 4}, "parts": []}
    assert identity(Before(threads=8)) == identity(Before())
    assert identity(Before(rate=0.2)) != identity(Before())
    assert identity(Before(parts=[Inner(width=2)]))["parts"] == [{"width": 2}]


def test_a_new_field_at_its_neutral_value_changes_no_identity_and_any_other_value_does() -> None:
    after = with_new_field(neutral="paper", default="paper")
    assert identity(after()) == identity(Before())
    assert identity(after(start="upstream")) == identity(Before()) | {"start": "upstream"}


def test_a_changed_default_changes_identities_of_new_and_old_fields_alike() -> None:
    later = with_new_field(neutral="paper", default="upstream")
    assert identity(later()) != identity(Before())
    assert identity(later(start="paper")) == identity(Before())
    changed = create_model("Changed", __base__=Before, rate=(float, 0.3))
    assert identity(changed()) != identity(Before())


def test_a_configuration_stored_before_a_field_existed_reads_as_it_was_after_its_default_has_changed() -> None:
    later = with_new_field(neutral="paper", default="upstream")
    stored = Before(rate=0.2).model_dump(mode="json")
    assert completed(later, stored)["start"] == "paper"
    assert identity(later(**completed(later, stored))) == identity(Before(rate=0.2))
    assert completed(later, stored | {"start": "upstream"})["start"] == "upstream"


def test_fields_of_nested_configurations_are_completed_and_left_out_likewise() -> None:
    inner = create_model("LaterInner", __base__=Inner, depth=(Annotated[int, Neutral(1)], 2))
    outer = create_model("LaterOuter", inner=(inner, inner()), parts=(list[inner], []))
    values = completed(outer, {"inner": {"width": 4}, "parts": [{"width": 8}]})
    assert values == {"inner": {"width": 4, "depth": 1}, "parts": [{"width": 8, "depth": 1}]}
    assert identity(outer(**values)) == {"inner": {"width": 4}, "parts": [{"width": 8}]}


def test_a_configuration_of_one_of_several_kinds_is_completed_as_the_kind_whose_fields_it_has() -> None:
    inner = create_model("LaterInner", __base__=Inner, depth=(Annotated[int, Neutral(1)], 2))
    other = create_model("Other", height=(int, 3), colour=(Annotated[str, Neutral("red")], "blue"))
    outer = create_model("Outer", parts=(list[Annotated[inner | other, "a mark"]], []), pair=(tuple[inner, ...], ()))
    values = completed(outer, {"parts": [{"width": 8}, {"height": 1}, 5], "pair": [{"width": 1}]})
    assert values["parts"] == [{"width": 8, "depth": 1}, {"height": 1, "colour": "red"}, 5]
    assert values["pair"] == [{"width": 1, "depth": 1}]


def test_what_is_stored_compactly_reads_back_and_does_not_grow_with_new_fields() -> None:
    after = with_new_field(neutral="paper", default="paper")
    assert compact(after(threads=8)) == compact(Before(threads=8)) == Before(threads=8).model_dump(mode="json")
    for config in (after(), after(start="upstream", threads=2)):
        assert after(**completed(after, compact(config))) == config
