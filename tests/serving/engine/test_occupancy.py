from splitrank.serving.engine.occupancy import Occupancy


def test_steps_in_flight_fill_stages_one_each() -> None:
    occupancy = Occupancy(3, 10.0)
    occupancy.update(1, 12.0)  # idle until now: neither busy nor a bubble
    assert (occupancy.stage_busy_s, occupancy.bubble_s) == (0, 0)
    occupancy.update(2, 13.0)  # 1 s of one stage of three
    assert (occupancy.stage_busy_s, occupancy.bubble_s) == (1, 2)
    occupancy.update(4, 15.0)  # 2 s of two stages
    assert (occupancy.stage_busy_s, occupancy.bubble_s) == (5, 4)
    occupancy.update(0, 16.0)  # 1 s of all: the fourth step waits for a stage
    assert (occupancy.stage_busy_s, occupancy.bubble_s) == (8, 4)
    occupancy.update(0, 99.0)
    assert (occupancy.stage_busy_s, occupancy.bubble_s) == (8, 4)
